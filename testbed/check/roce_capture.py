#!/usr/bin/python3
"""Judges a capture of the RDMA network with an independent dissector (scapy's contrib.roce).

    roce_capture.py FILE.pcap BEGIN END TARGET MONITOR SPARE

BEGIN and END are seconds since 1970. Every packet between them must be RoCEv2 with a valid ICRC. Prints one line of
JSON: how many packets were judged, how many ICRCs were wrong, and what monitor and spare asked of the target and got.
The exit status is 0 if every ICRC was right. It trusts nothing of this project: formats and checksum are scapy's.
"""
import json
import struct
import sys

from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader

# Opcodes of the reliable connection that carry a READ (InfiniBand Architecture, "Base Transport Header").
READ_REQUEST = 12
READ_RESPONSES = (13, 14, 15, 16)
# RETH, and the AETH of first, last and only responses: what is not data.
EXTENSION_BYTES = {13: 4, 14: 0, 15: 4, 16: 4}
BTH_BYTES, ICRC_BYTES = 12, 4


def icrc_is_right(packet):
    computed = packet[BTH].compute_icrc(b"")
    return struct.pack("!I", packet[BTH].icrc) == computed


def main():
    file, begin, end, target, monitor, spare = sys.argv[1:]
    begin, end = float(begin), float(end)
    names = {monitor: "monitor", spare: "spare"}
    seen = {"packets": 0, "wrong_icrc": 0, "strange": 0, "first_s": None, "last_s": None}
    for name in names.values():
        seen[name] = {"read_requests": 0, "read_bytes": 0}
    with PcapReader(file) as packets:
        for packet in packets:
            at = float(packet.time)
            if not begin <= at <= end:
                continue
            if BTH not in packet or IP not in packet:
                seen["strange"] += 1
                continue
            seen["packets"] += 1
            seen["first_s"] = at if seen["first_s"] is None else seen["first_s"]
            seen["last_s"] = at
            if not icrc_is_right(packet):
                seen["wrong_icrc"] += 1
            ip, opcode = packet[IP], packet[BTH].opcode
            if ip.dst == target and ip.src in names and opcode == READ_REQUEST:
                seen[names[ip.src]]["read_requests"] += 1
            if ip.src == target and ip.dst in names and opcode in READ_RESPONSES:
                around = 8 + BTH_BYTES + EXTENSION_BYTES[opcode] + packet[BTH].padcount + ICRC_BYTES
                seen[names[ip.dst]]["read_bytes"] += packet[UDP].len - around
    print(json.dumps(seen))
    return 1 if seen["wrong_icrc"] or seen["strange"] or not seen["packets"] else 0


if __name__ == "__main__":
    sys.exit(main())
