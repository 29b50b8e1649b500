"""A server of the handshake era by hand, over raw JSON lines, which asks whatever the call says.

The arguments of any tool, and those of the prompt, are `ask`: a list of questions, each with `method` and `params`,
asked at once; what it is answered with is the JSON of all answers, in order, and of what the client declared. Resources
ask for the roots. What `in_vain` asks is taken back when a call of the tool `seen` comes. `then` is a list of such
lists: rounds. Notifications in `say` are sent after each round.
"""

import itertools
import json
import sys
import threading

declared: object = None
numbers = itertools.count(1)
answers: dict[str, object] = {}
news = threading.Condition()
seen = threading.Semaphore(0)


def send(message: object) -> None:
    with news:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def ask(questions: list) -> list:
    asked = [(f"ask-{next(numbers)}", question) for question in questions]
    for number, question in asked:
        send({"id": number, **question})
    with news:
        news.wait_for(lambda: all(number in answers for number, _ in asked))
        return [answers.pop(number) for number, _ in asked]


def told(arguments: dict) -> str:
    for question in arguments.get("in_vain", []):
        number = f"in-vain-{next(numbers)}"
        send({"id": number, **question})
        seen.acquire()
        send({"method": "notifications/cancelled", "params": {"requestId": number}})
    rounds = [arguments.get("ask", []), *arguments.get("then", [])]
    heard = []
    for questions in rounds:
        heard += ask(questions)
        for notification in arguments.get("say", []):
            send(notification)
    return json.dumps({"answers": heard, "declared": declared})


def result_of(method: str, params: dict) -> object:
    match method:
        case "initialize":
            capabilities = {"tools": {}, "resources": {}, "prompts": {}, "logging": {}}
            about = {"serverInfo": {"name": "asks", "version": "1"}}
            return {"protocolVersion": "2025-11-25", "capabilities": capabilities, **about}
        case "tools/list":
            return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("ask", "seen")]}
        case "resources/list":
            return {"resources": [{"uri": "data://roots", "name": "roots"}]}
        case "resources/templates/list":
            return {"resourceTemplates": []}
        case "prompts/list":
            return {"prompts": [{"name": "ask", "arguments": [{"name": "ask"}]}]}
        case "tools/call":
            if params["name"] == "seen":
                seen.release()
            return {"content": [{"type": "text", "text": told(params.get("arguments") or {})}]}
        case "resources/read":
            return {"contents": [{"uri": params["uri"], "text": told({"ask": [{"method": "roots/list"}]})}]}
        case "prompts/get":
            text = told({name: json.loads(value) for name, value in (params.get("arguments") or {}).items()})
            return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}
        case "ping":
            return {}
    return None


def serve(message: dict) -> None:
    result = result_of(message["method"], message.get("params") or {})
    if result is None:
        send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})
    else:
        send({"id": message["id"], "result": result})


for line in sys.stdin:
    message = json.loads(line)
    if "method" not in message:
        with news:
            answers[message["id"]] = message.get("result", message.get("error"))
            news.notify_all()
    elif "id" in message:
        if message["method"] == "initialize":
            declared = message["params"]["capabilities"]
        threading.Thread(target=serve, args=(message,), daemon=True).start()
    elif message["method"] == "notifications/cancelled":
        print(f"cancelled {message['params']['requestId']}", file=sys.stderr, flush=True)
