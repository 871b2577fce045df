"""A kernel that only binds its ports and answers kernel_info and heartbeats."""

import hashlib
import hmac
import json
import sys
from pathlib import Path

import zmq

with Path(sys.argv[1]).open() as file:
    info = json.load(file)
context = zmq.Context()


def bind(name, kind):
    sock = context.socket(kind)
    sock.linger = 0
    sock.bind(f"tcp://{info['ip']}:{info[f'{name}_port']}")
    return sock


names = ("shell", "control", "stdin", "hb")
sockets = {name: bind(name, zmq.ROUTER) for name in names}
iopub = bind("iopub", zmq.XPUB)
poller = zmq.Poller()
for each in (*sockets.values(), iopub):
    poller.register(each, zmq.POLLIN)


def message(msg_type, content, parent):
    header = {"msg_id": str(id(content)), "msg_type": msg_type, "session": "stub", "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
    signature = hmac.new(info["key"].encode(), b"".join(parts), hashlib.sha256).hexdigest()
    return [b"<IDS|MSG>", signature.encode(), *parts]


while True:
    for sock, _ in poller.poll():
        frames = sock.recv_multipart()
        if sock is iopub:
            continue
        if sock is sockets["hb"]:
            sock.send_multipart(frames)
            continue
        at = frames.index(b"<IDS|MSG>")
        parent = json.loads(frames[at + 2])
        for state in ("busy", "idle"):
            status = message("status", {"execution_state": state}, parent)
            iopub.send_multipart([b"status", *status])
            if state == "busy":
                answer = {"status": "ok", "protocol_version": "5.3", "restart": False}
                kind = parent["msg_type"].replace("_request", "_reply")
                sock.send_multipart([*frames[:at], *message(kind, answer, parent)])
        if parent["msg_type"] == "shutdown_request":
            sys.exit()
