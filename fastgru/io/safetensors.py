"""fastgru's own files: the weights as safetensors, the layer's config in their metadata."""
