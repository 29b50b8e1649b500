"""Writes to stdout what no server should; its one argument says what. Runs until its input ends, or for ever."""

import sys

PONG = b'{"jsonrpc":"2.0","id":1,"result":"pong"}\n'
MEBIBYTE = b"x" * 2**20
out = sys.stdout.buffer


def garbage() -> None:
    out.write(b"Listening on stdio...\n\n[1, 2]\n42\n{'a': 1}\n" + b'{"cut":\n' + b"\0\n" + PONG)


def damaged_text() -> None:
    out.write(b'{"id":1,"bytes":"caf\xe9","half":"\\ud83d"}\r\n')


def big_line() -> None:
    out.write(PONG)
    for _ in range(64):
        out.write(MEBIBYTE)
    out.write(b"\n")


def endless_line() -> None:
    while True:
        out.write(MEBIBYTE)


def flood() -> None:
    for number in range(20_000):
        out.write(b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%d}}\n' % number)


def blank_lines() -> None:
    while True:
        out.write(b"\n" * 2**16)


def single_bytes() -> None:
    for position in range(len(PONG)):
        out.write(PONG[position : position + 1])
        out.flush()


globals()[sys.argv[1]]()
out.flush()
sys.stdin.read()
