#!/usr/bin/python3
"""Records every RoCEv2 packet of an interface into a pcap file, until it is told to end (SIGTERM).

    record.py INTERFACE FILE.pcap

Says `recording` on standard output when it does. At the end it says how many packets it recorded and how many the
kernel dropped for it; a capture with holes proves nothing, so then the exit status is 1. tcpdump would do the same, but
it insists on becoming another user, and in a user namespace there is none.
"""
import signal
import socket
import struct
import sys

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
# 64 MiB: a batch of READs of a whole memory arrives faster than anybody writes it down.
BUFFER_BYTES = 64 << 20
FRAME_BYTES_MAX = 65536
ROCE_PORT = 4791


def is_roce(frame):
    """IPv4 over Ethernet, UDP, to the port of RoCEv2."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
        return False
    udp = 14 + (frame[14] & 15) * 4
    return struct.unpack_from("!H", frame, udp + 2)[0] == ROCE_PORT


def records(interface):
    """Yields (seconds, nanoseconds, frame) for ever."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as packets:
        for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
            try:
                packets.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
                break
            except PermissionError:
                continue
        packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        packets.bind((interface, ETH_P_ALL))
        print("recording", flush=True)
        try:
            while True:
                frame, control, _, _ = packets.recvmsg(FRAME_BYTES_MAX, 64)
                seconds, nanoseconds = struct.unpack("qq", control[0][2])
                if len(frame) > 42 and is_roce(frame):
                    yield seconds, nanoseconds, frame
        finally:
            seen, dropped = struct.unpack("II", packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            print(f"{seen} packets seen, {dropped} dropped", flush=True)
            if dropped:
                sys.exit(1)


def stop(*_):
    raise KeyboardInterrupt


def main():
    interface, path = sys.argv[1:]
    signal.signal(signal.SIGTERM, stop)
    with open(path, "wb") as out:
        # The nanosecond variant of the format, Ethernet frames.
        out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, FRAME_BYTES_MAX, 1))
        recorded = records(interface)
        try:
            for seconds, nanoseconds, frame in recorded:
                out.write(struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
        except KeyboardInterrupt:
            recorded.close()


if __name__ == "__main__":
    main()
