// Run by Node with the unmodified openai client: models, generations, edits, streams, errors.
import assert from 'node:assert';
import fs from 'node:fs';
import OpenAI, { toFile } from 'openai';

const [url, folder] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const quick = { model: 'tiny', num_inference_steps: 3, seed: 7 };

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert(ids.includes('tiny'));

const drawn = await client.images.generate({ prompt: 'a boat', n: 2, ...quick });
assert.deepEqual(drawn.data.map((one) => one.seed), [7, 8]);
assert.equal(drawn.size, '16x16');

const image = fs.readFileSync(`${folder}/image.png`);
const hole = fs.readFileSync(`${folder}/hole.png`);
const edited = await client.images.edit({
  prompt: 'x', image: await toFile(image, 'image.png'), mask: await toFile(hole, 'mask.png'), ...quick,
  metadata: { a: 'b' },
});
fs.writeFileSync(`${folder}/openai.png`, Buffer.from(edited.data[0].b64_json, 'base64'));
const listed = await client.images.edit({ prompt: 'x', image: [await toFile(image, 'image.png')], ...quick });
assert.equal(listed.data.length, 1);

const kinds = [];
for await (const event of await client.images.generate({ prompt: 'x', stream: true, ...quick })) kinds.push(event.type);
assert.deepEqual(kinds, ['image_generation.completed']);

await assert.rejects(client.images.generate({ prompt: 'x', ...quick, size: '15x16' }), (error) => {
  assert(error instanceof OpenAI.BadRequestError);
  assert.deepEqual([error.code, error.param, error.type], ['invalid_value', 'size', 'invalid_request_error']);
  return error.requestID.startsWith('req_');
});
