// Calls tools with a client made with the TypeScript SDK, and prints the texts of their answers as one line of JSON.
//
//     node call.mjs URL '[["tool", {"argument": "value"}], …]'

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, calls] = process.argv.slice(2);
const transport = new StreamableHTTPClientTransport(new URL(url));
const client = new Client({ name: "typescript", version: "1" });

await client.connect(transport);
const offered = new Set((await client.listTools()).tools.map((tool) => tool.name));
const texts = [];
for (const [name, args] of JSON.parse(calls)) {
  if (!offered.has(name)) throw new Error(`${name} is not offered`);
  const { content } = await client.callTool({ name, arguments: args });
  texts.push(content.map((block) => block.text ?? "").join("\n"));
}
await transport.terminateSession();
await client.close();
console.log(JSON.stringify(texts));
