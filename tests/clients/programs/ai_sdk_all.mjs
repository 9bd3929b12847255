// Run by Node with the unmodified AI SDK: generations, an edit with a mask, the text of an error.
import assert from 'node:assert';
import fs from 'node:fs';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateImage } from 'ai';

const [url, folder] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: 'mezzotint', baseURL: `${url}/v1`, apiKey: 'none' });
const model = provider.imageModel('tiny');
const providerOptions = { mezzotint: { num_inference_steps: 3, seed: 7 } };

const drawn = await generateImage({ model, prompt: 'a boat', n: 2, size: '16x16', providerOptions, maxRetries: 0 });
assert.equal(drawn.images.length, 2);

const image = fs.readFileSync(`${folder}/image.png`);
const mask = fs.readFileSync(`${folder}/hole.png`);
const edited = await generateImage({
  model, prompt: { text: 'x', images: [image], mask }, providerOptions, maxRetries: 0,
});
fs.writeFileSync(`${folder}/ai.png`, Buffer.from(edited.images[0].base64, 'base64'));

await assert.rejects(
  generateImage({ model, prompt: 'x', size: '15x16', providerOptions, maxRetries: 0 }),
  (error) => /multiple of 2/.test(error.message),
);
