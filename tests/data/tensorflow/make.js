// Makes the models that TensorFlow.js itself saved, and what it computes: see make_more.py, which
// runs this with @tensorflow/tfjs 4.22:  node make.js FOLDER
const tf = require('@tensorflow/tfjs');
const fs = require('fs');

/** Return a function that gives numbers between -1 and 1, the same in each run. */
function numbers(seed) {
  return () => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return (seed / 2147483648) * 2 - 1;
  };
}

function random(shape, seed, scale) {
  const next = numbers(seed);
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(Float32Array.from({length: size}, () => scale * next()), shape);
}

async function save(model, folder, x) {
  model.setWeights(model.getWeights().map((w, i) => random(w.shape, 7 + i, 0.8)));
  fs.mkdirSync(folder, {recursive: true});
  await model.save(tf.io.withSaveHandler(async (artifacts) => {
    fs.writeFileSync(folder + '/weights.bin', Buffer.from(artifacts.weightData));
    const json = {
      modelTopology: artifacts.modelTopology,
      format: artifacts.format,
      generatedBy: artifacts.generatedBy,
      convertedBy: artifacts.convertedBy,
      weightsManifest: [{paths: ['weights.bin'], weights: artifacts.weightSpecs}],
    };
    fs.writeFileSync(folder + '/model.json', JSON.stringify(json));
    return {modelArtifactsInfo: {dateSaved: new Date(), modelTopologyType: 'JSON'}};
  }));
  const y = {x: await x.array(), y: await model.predict(x).array()};
  fs.writeFileSync(folder + '/outputs.json', JSON.stringify(y));
}

async function main(folder) {
  const x = random([3, 5, 4], 3, 2);
  const L = tf.layers;
  const gru = (units, more) => L.gru({units, returnSequences: true, ...more});
  const cells = (a, b) => [L.gruCell({units: a}), L.gruCell({units: b})];
  // The recurrent activation is hardSigmoid unless another is given.
  await save(tf.sequential({layers: [
    gru(3, {inputShape: [null, 4]}),
    L.bidirectional({layer: gru(2), mergeMode: 'concat'}),
    gru(4, {recurrentActivation: 'sigmoid'}),
  ]}), folder + '/js_own', x);
  await save(tf.sequential({layers: [
    gru(3, {inputShape: [null, 4], name: 'enc', goBackwards: true}),
    L.rnn({cell: cells(3, 2), returnSequences: true, name: 'cells'}),
    L.rnn({cell: L.gruCell({units: 3}), returnSequences: true, name: 'single'}),
  ]}), folder + '/js_own_cells', x);
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
