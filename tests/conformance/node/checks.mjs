// OpenAI's client for Node against a gateway: each check prints one line of JSON, {"name", "failure"}.
// `node checks.mjs` with DESCANT_URL, DESCANT_API_KEY, DESCANT_MODEL, and DESCANT_TOKEN_X, the token id of "x".

import assert from "node:assert/strict";
import OpenAI from "openai";

const { DESCANT_URL, DESCANT_API_KEY: apiKey, DESCANT_MODEL: model, DESCANT_TOKEN_X: tokenX } = process.env;
const baseURL = `${DESCANT_URL}/v1`;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });

const messages = [{ role: "user", content: "Hello" }];
const onlyX = { [tokenX]: 100 };
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { enum: ["Oslo", "Rome"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const sayCall = {
  tools,
  max_completion_tokens: 200,
  structured_outputs: {
    choice: ['<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'],
  },
};

const chat = (options) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_completion_tokens: 8, ...options });

const text = (options) => client.completions.create({ model, prompt: "Hello", temperature: 0, max_tokens: 8, ...options });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function refusalOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not refused");
}

const checks = [];
const check = (name, run) => checks.push({ name, run });

check("chat answers", async () => {
  const answer = await chat({ logit_bias: onlyX });
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.content, "xxxxxxxx");
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 8);
});

check("chat streams what it answers", async () => {
  const whole = await chat({});
  const chunks = await collect(await chat({ stream: true, stream_options: { include_usage: true } }));
  const said = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
  assert.equal(said, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
  assert.equal(chunks.at(-1).choices.length, 0);
});

check("the stream helper adds up", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_completion_tokens: 8, logit_bias: onlyX });
  let said = "";
  runner.on("content", (delta) => (said += delta));
  assert.equal(await runner.finalContent(), "xxxxxxxx");
  assert.equal(said, "xxxxxxxx");
});

check("seeds reproduce", async () => {
  const draw = async (seed) => (await chat({ temperature: 1.5, seed })).choices[0].message.content;
  assert.equal(await draw(1), await draw(1));
  assert.notEqual(await draw(1), await draw(2));
});

check("several choices differ", async () => {
  const answer = await chat({ temperature: 1.5, n: 3, seed: 1 });
  assert.equal(new Set(answer.choices.map((choice) => choice.message.content)).size, 3);
  assert.equal(answer.usage.completion_tokens, 24);
});

check("stop ends the text", async () => {
  const answer = await chat({ logit_bias: onlyX, stop: ["xxx"] });
  assert.equal(answer.choices[0].message.content, "");
  assert.equal(answer.choices[0].finish_reason, "stop");
});

check("log-probabilities have their shape", async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 2 });
  const scored = answer.choices[0].logprobs.content;
  assert.equal(scored.length, 8);
  for (const token of scored) {
    assert.ok(token.logprob < 0);
    assert.ok(Array.isArray(token.bytes));
    assert.equal(token.top_logprobs.length, 2);
  }
});

check("a schema is kept to", async () => {
  const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
  const answer = await chat({
    max_completion_tokens: 100,
    logit_bias: JSON.parse(process.env.DESCANT_COMPACT),
    response_format: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } },
  });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).ok, "boolean");
});

check("a tool is called", async () => {
  const answer = await chat({ ...sayCall, logit_bias: JSON.parse(process.env.DESCANT_COMPACT) });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  assert.equal(call.type, "function");
  assert.deepEqual([call.function.name, call.function.arguments], ["weather", '{"city": "Oslo"}']);
});

check("a tool's call streams", async () => {
  const runner = client.chat.completions.stream({
    model,
    messages,
    temperature: 0,
    ...sayCall,
    logit_bias: JSON.parse(process.env.DESCANT_COMPACT),
  });
  const [call] = (await runner.finalMessage()).tool_calls;
  assert.equal(call.function.name, "weather");
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
});

check("a tool's answer is read", async () => {
  const call = { id: "c1", type: "function", function: { name: "weather", arguments: '{"city": "Oslo"}' } };
  const conversation = [
    ...messages,
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "c1", content: "snow" },
  ];
  assert.equal((await chat({ messages: conversation, tools })).usage.completion_tokens, 8);
});

check("thoughts come apart", async () => {
  const answer = await chat({ chat_template_kwargs: { enable_thinking: true }, logit_bias: onlyX });
  assert.equal(answer.choices[0].message.reasoning_content, "xxxxxxxx");
  assert.equal(answer.usage.completion_tokens_details.reasoning_tokens, 8);
});

check("prompts are cached", async () => {
  const long = [{ role: "user", content: "n".repeat(64) }];
  await chat({ messages: long });
  assert.ok((await chat({ messages: long })).usage.prompt_tokens_details.cached_tokens >= 48);
});

check("text completes", async () => {
  const answer = await text({ echo: true, logprobs: 1, logit_bias: onlyX });
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.choices[0].text, "Helloxxxxxxxx");
  assert.equal(answer.choices[0].logprobs.tokens.length, 13);
});

check("text streams what it completes", async () => {
  const whole = await text({ n: 2, temperature: 1, seed: 3 });
  const said = ["", ""];
  for await (const chunk of await text({ n: 2, temperature: 1, seed: 3, stream: true })) {
    for (const choice of chunk.choices) said[choice.index] += choice.text;
  }
  assert.deepEqual(said, whole.choices.map((choice) => choice.text));
});

check("embeddings are the same in base64 and as numbers", async () => {
  const asNumbers = await client.embeddings.create({ model, input: ["Hello", "Bye"], encoding_format: "float" });
  const decoded = await client.embeddings.create({ model, input: ["Hello", "Bye"] });
  assert.equal(decoded.data.length, 2);
  decoded.data.forEach(({ embedding }, index) => {
    assert.equal(embedding.length, 64);
    embedding.forEach((value, place) => assert.ok(Math.abs(value - asNumbers.data[index].embedding[place]) < 1e-5));
  });
});

check("models are listed", async () => {
  const ids = (await collect(client.models.list())).map((each) => each.id);
  assert.deepEqual(ids, [model]);
  assert.equal((await client.models.retrieve(model)).object, "model");
});

check("responses stream and are stored", async () => {
  const stream = await client.responses.create({ model, input: "Hello", max_output_tokens: 8, temperature: 0, stream: true });
  const events = await collect(stream);
  const made = events.at(-1).response;
  const stored = await client.responses.retrieve(made.id);
  assert.deepEqual(stored.output, made.output);
  const said = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(said.join(""), stored.output_text);
  await client.responses.delete(made.id);
});

check("an unknown field is a 400 with its name", async () => {
  const error = await refusalOf(chat({ surprise: true }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.deepEqual([error.status, error.param, error.code], [400, "surprise", "unsupported_parameter"]);
  assert.equal(error.type, "invalid_request_error");
});

check("a value out of range is a 400 with its field", async () => {
  const error = await refusalOf(chat({ temperature: 5 }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  assert.match(error.message, /temperature/);
});

check("a prompt that is too long says so", async () => {
  const error = await refusalOf(chat({ messages: [{ role: "user", content: "x".repeat(4000) }] }));
  assert.deepEqual([error.status, error.code], [400, "context_length_exceeded"]);
});

check("a refusal comes before a stream", async () => {
  const error = await refusalOf(chat({ stream: true, top_p: 2 }));
  assert.deepEqual([error.status, error.param], [400, "top_p"]);
});

check("an unknown model is a 404", async () => {
  const error = await refusalOf(chat({ model: "nobody" }));
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
});

check("an unknown key is a 401", async () => {
  const stranger = new OpenAI({ baseURL, apiKey: "dsc_wrong", maxRetries: 0 });
  const error = await refusalOf(stranger.models.list());
  assert.ok(error instanceof OpenAI.AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
});

check("a stream can be left", async () => {
  const stream = await chat({ stream: true, max_completion_tokens: 1500 });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    stream.controller.abort();
  }
  assert.equal((await chat({})).usage.completion_tokens, 8);
});

check("a request can be aborted", async () => {
  const controller = new AbortController();
  const asked = client.chat.completions.create(
    { model, messages, max_completion_tokens: 1500, ignore_eos: true },
    { signal: controller.signal },
  );
  setTimeout(() => controller.abort(), 30);
  assert.ok((await refusalOf(asked)) instanceof OpenAI.APIUserAbortError);
});

check("answers name their request", async () => {
  const { data, response } = await chat({ max_completion_tokens: 1 }).withResponse();
  assert.ok(response.headers.get("x-request-id"));
  assert.equal(data._request_id, response.headers.get("x-request-id"));
});

for (const { name, run } of checks) {
  let failure = null;
  try {
    await run();
  } catch (error) {
    failure = String(error.stack ?? error);
  }
  console.log(JSON.stringify({ name, failure }));
}
