import asyncio, os, time
from tests.helpers.gateway import *
from tests.helpers.faults import *
from tests.helpers.faults import _command_line
async def test_explore():
    era="legacy"
    async with broken("list-once", "stdio") as server, gateway_over_http(both(server, refresh_interval=0.1)) as gateway, undisturbed(gateway.url, era), client(gateway.url, era) as caller:
        await caller.list_tools()
        cat = gateway.gateway.registry.mounts["broken"].catalogue
        try:
            await eventually(lambda: "did not finish 'tools/list'" in str(cat.error(gateway.gateway.operator_caller())))
        except TimeoutError:
            print("NOW", time.time())
            print(cat._scopes)
            print(gateway.gateway.pool.connections(), gateway.gateway.pool._waiters, gateway.gateway.pool.backoff._troubles)
            for p in descendants(os.getpid()):
                print(p, _command_line(p), open(f"/proc/{p}/stat").read()[:60], open(f"/proc/{p}/wchan").read())
            for t in asyncio.all_tasks():
                print("----", t.get_name()); t.print_stack(limit=4)
            raise
