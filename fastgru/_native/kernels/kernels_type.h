/* The kernel table of one ISA and one TYPE, from the templates that it includes; included by
 * isa_template.h.
 */
#include "activations_type.h"

#include "half_type.h"

static const KERNELS FN(kernels); /* the table at the end: gates find activations in it */

#ifdef VECTOR_BYTES
#    include "gates_type.h"

#    include "forward_type.h"
#    include "forward_narrow_type.h"
#    include "backward_type.h"
#    include "products_type.h"
#    define FUSED                                                                                  \
        .lanes = VECTOR_BYTES / sizeof(TYPE), .run = FN(run), .run_scratch = FN(run_scratch),      \
        .back = FN(run_back), .back_scratch = FN(back_scratch), .products = FN(run_products),      \
        .product_scratch = FN(product_scratch)
#else
#    define FUSED .lanes = 0
#endif

#define ACTIVATION_ENTRY(NAME, name) [ACT_##NAME] = FN(name),
#define DERIVATIVE_ENTRY(NAME, name) [ACT_##NAME] = FN(d_##name),

static const KERNELS FN(kernels) = {
    FUSED,
    .round = FN(round),
    .activations = {FASTGRU_ACTIVATIONS(ACTIVATION_ENTRY)},
    .derivatives = {FASTGRU_ACTIVATIONS(DERIVATIVE_ENTRY)},
};

#undef ACTIVATION_ENTRY
#undef DERIVATIVE_ENTRY
#undef FUSED
#undef EXP_LIMIT
#undef EXP_OVERFLOW
#undef TANH_LIMIT
#undef HALF
#undef HALVES
#undef ITEM
#undef TYPE
#undef KERNELS
#undef FN
#undef M
#undef C
#undef LANE_MASK
#undef INTRINSIC
