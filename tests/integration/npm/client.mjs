// A client made with the TypeScript SDK: connects, does what a host does, and prints what it heard as one line of JSON.
//
//     node client.mjs http URL
//     node client.mjs stdio COMMAND [ARGUMENT...]
//
// The server is the gateway with the test server `everything.py` under the name `b`.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  LoggingMessageNotificationSchema,
  ToolListChangedNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";

const [kind, target, ...rest] = process.argv.slice(2);
const transport =
  kind === "http"
    ? new StreamableHTTPClientTransport(new URL(target))
    : new StdioClientTransport({ command: target, args: rest, env: process.env, stderr: "ignore" });

const capabilities = { elicitation: {}, sampling: {}, roots: {} };
const client = new Client({ name: "typescript", version: "1" }, { capabilities });
const heard = { logs: [], progress: [], changes: 0 };

client.setRequestHandler(ElicitRequestSchema, async () => ({ action: "accept", content: { value: "yes" } }));
client.setRequestHandler(ListRootsRequestSchema, async () => ({ roots: [{ uri: "file:///ts", name: "ts" }] }));
client.setRequestHandler(CreateMessageRequestSchema, async () => ({
  model: "none",
  role: "assistant",
  content: { type: "text", text: "thought" },
}));
client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => heard.logs.push(params.data.msg));
const changed = new Promise((resolve) =>
  client.setNotificationHandler(ToolListChangedNotificationSchema, () => resolve(++heard.changes)),
);

await client.connect(transport);
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const conferred = await client.callTool({ name: "b_confer", arguments: { tag: "ts", steps: 2 } }, undefined, {
  onprogress: ({ progress, total }) => heard.progress.push([progress, total]),
});
const failed = await client.callTool({ name: "b_fail", arguments: { message: "on purpose" } });
const read = await client.readResource({ uri: "data://b/item/7" });
const prompt = await client.getPrompt({ name: "b_summarize", arguments: { topic: "owls" } });
await client.callTool({ name: "b_change_tools", arguments: { name: "newcomer" } });
await changed;
const later = (await client.listTools()).tools.map((tool) => tool.name);

if (kind === "http") await transport.terminateSession();
await client.close();
console.log(
  JSON.stringify({
    tools,
    heard,
    answers: conferred.structuredContent,
    failed,
    read: read.contents[0],
    prompt: prompt.messages[0].content.text,
    later: later.filter((name) => !tools.includes(name)),
    instructions: client.getInstructions(),
  }),
);
