"""Does with TAP devices for the guest tests what busybox has no command for.

    tap.py checksums NAME            the host does all checksums itself (ethtool -K NAME tx off)
    tap.py lie NAME MAC ADDRESS      sends that guest a datagram whose checksum is wrong
    tap.py watch NAME                until standard input ends: whose the checksums of TCP and UDP from the guest are
    tap.py segments ADDRESS PORT     sends 30 datagrams of 1,400 bytes in one call, to be cut by who can (UDP_SEGMENT);
                                     hears as many, and that they are the same
    tap.py pass NAME FD COMMAND...   makes the device, and becomes COMMAND, run by nobody, with it open as that descriptor
"""
import array
import fcntl
import os
import random
import select
import socket
import struct
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000  # linux/if_tun.h
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
UDP_SEGMENT = 103  # linux/udp.h
NOBODY = 65534
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_CSUMNOTREADY, TP_STATUS_CSUM_VALID = 263, 8, 1 << 3, 1 << 7  # linux/if_packet.h


def checksums(name):
    """struct ethtool_value with 0, by the pointer in a struct ifreq."""
    value = array.array("I", [ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def folded(data):
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def lie(name, mac, address):
    """UDP to port 9, complete but for its checksum, which is off by one; the IP header's is right."""
    data, source, target = b"a lie!", socket.inet_aton("192.0.2.1"), socket.inet_aton(address)
    length = 8 + len(data)
    udp = struct.pack("!4H", 9, 9, length, 0) + data
    right = folded(source + target + struct.pack("!2H", socket.IPPROTO_UDP, length) + udp)
    udp = udp[:6] + struct.pack("!H", right % 0xFFFF + 1) + data
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + source + target
    header = header[:10] + struct.pack("!H", folded(header)) + header[12:]
    frame = bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\xfe" + b"\x08\0" + header + udp
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((name, 0))
        link.send(frame)


def watch(name):
    """Counts frames by what the kernel knows of their checksums when they come: left out, vouched for, to be verified."""
    counts = {"left": 0, "vouched": 0, "verified": 0}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as link:
        link.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        link.bind((name, 0x0800))
        print("READY", flush=True)
        while True:
            ready, _, _ = select.select([link, sys.stdin], [], [])
            if link not in ready:
                break
            frame, extra, _, sender = link.recvmsg(64, 128)
            if sender[2] == socket.PACKET_OUTGOING or frame[23] not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                continue
            status = next(struct.unpack_from("I", data)[0] for _, kind, data in extra if kind == PACKET_AUXDATA)
            left, vouched = status & TP_STATUS_CSUMNOTREADY, status & TP_STATUS_CSUM_VALID
            counts["left" if left else "vouched" if vouched else "verified"] += 1
    print(*(f"{what}={count}" for what, count in counts.items()), flush=True)


def segments(address, port):
    """udp(7): UDP_SEGMENT."""
    sent = [random.randbytes(1400) for _ in range(30)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(200)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
        peer.sendto(b"".join(sent), (address, int(port)))
        heard = [peer.recv(2000) for _ in sent]
    assert heard == sent, [len(one) for one in heard]


def pass_on(name, descriptor, *command):
    """What a launcher does that may make TAP devices, for a monitor that may not."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    os.dup2(tap, int(descriptor), inheritable=True)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execvp(command[0], command)


if __name__ == "__main__":
    {"checksums": checksums, "lie": lie, "watch": watch, "segments": segments, "pass": pass_on}[sys.argv[1]](*sys.argv[2:])
