import pytest, time
from tests.helpers.gateway import *
from tests.helpers.faults import *
MODES = ["init-hang","list-hang","call-hang","flood","garbage","bigline","endless","wrong-id","twice","die-in-call","progress","bad-text","no-object","wrong-shape","many-tools","big-schema","endless-list","connect-hang"]
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("era", ERAS)
async def test_explore(era, mode, transport):
    if mode=="connect-hang" and transport=="stdio": return
    async with broken(mode, transport) as table, gateway_over_http(both(table)) as g, undisturbed(g.url, era), client(g.url, era) as c:
        t=time.monotonic()
        tools = await c.list_tools()
        print(f"\n>> {mode} {transport} {era} list {len(tools)} {time.monotonic()-t:.2f}")
        for _ in range(3):
            t=time.monotonic()
            try:
                r = await c.call_tool("broken_echo", HELLO)
                print("   ok", time.monotonic()-t, str(r.content)[:150])
            except Exception as e:
                print("   ", f"{time.monotonic()-t:.2f}", type(e).__name__, str(e)[:300])
        print("   ", g.gateway.pool.statistics())
