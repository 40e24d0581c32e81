//! Frames a Pod should not send, sent by hand. Root only.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::*;
use crate::kernel::link::Mac;
use crate::kernel::nft::Transaction;
use crate::testing::{MACHINE, Pod, World, ask, is_root, serve};

const ALL: Mac = [0xff; 6];
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Where [`datagram`]s go.
const PORT: u16 = 5000;

fn raw(netns: &Path) -> OwnedFd {
    netns::within(netns, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
    })
    .unwrap()
}

#[allow(unsafe_code)]
fn send(from: &Pod, frame: &[u8]) {
    netns::within(&from.netns, || {
        let index = Links::open().unwrap().find("eth0").unwrap().unwrap();
        let address = nix::libc::sockaddr_ll {
            sll_family: nix::libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        // SAFETY: the structure is that of the family it names, initialized, and outlives the call that copies it.
        let address = unsafe {
            LinkAddr::from_raw(
                std::ptr::from_ref(&address).cast(),
                Some(size_of_val(&address) as nix::libc::socklen_t),
            )
        }
        .unwrap();
        sendto(raw(&from.netns).as_raw_fd(), frame, &address, MsgFlags::empty()).unwrap();
    })
    .unwrap();
}

/// Which of the marks come by at the Pod until `last` does.
fn seen(listener: &OwnedFd, marks: &[&str], last: &str) -> Vec<String> {
    setsockopt(listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 300_000)).unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 2048]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut over = false;
    while Instant::now() < deadline {
        let Ok(length) = recv(listener.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
            if over {
                return seen;
            }
            continue;
        };
        let holds = |mark: &str| buffer[..length].windows(mark.len()).any(|part| part == mark.as_bytes());
        over |= holds(last);
        seen.extend(marks.iter().filter(|mark| holds(mark)).map(|mark| (*mark).to_owned()));
    }
    panic!("{last} did not come by; {seen:?} did");
}

fn frame(to: Mac, from: Mac, kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, body].concat()
}

/// A UDP datagram in its packet.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, text: &str) -> Vec<u8> {
    let length = |extra: usize| (text.len() as u16 + extra as u16).to_be_bytes();
    let [a, b] = length(28);
    let mut header = vec![0x45, 0, a, b, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&folded.to_be_bytes());
    let ports = [PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
    [&header[..], &ports, &length(8), &[0, 0], text.as_bytes()].concat()
}

/// ARP: `mac` has `ip`, it says to `whom`; and a text behind, as padding.
fn arp(kind: u8, mac: Mac, ip: Ipv4Addr, whom: Ipv4Addr, text: &str) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, kind];
    [&head[..], &mac, &ip.octets(), &[0; 6], &whom.octets(), text.as_bytes()].concat()
}

/// A datagram of IPv6's link-local addresses.
fn datagram6(mac: Mac, text: &str) -> Vec<u8> {
    let [a, b, c, d, e, f] = mac;
    let address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let length = (text.len() as u16 + 8).to_be_bytes();
    let ports = [PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
    let header = [&[0x60, 0, 0, 0][..], &length, &[17, 64], &address, &address].concat();
    [&header[..], &ports, &length, &[0, 0], text.as_bytes()].concat()
}

#[tokio::test]
async fn a_pod_sends_its_own_packets_to_the_gateway_and_nothing_else() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        let world = World::with_bridge_netfilter(bridge_netfilter).await;
        let (a, b) = (world.pod("a", vec![]).await, world.pod("b", vec![]).await);
        let (ma, mb, mg) = (mac_of(a.ip()), mac_of(b.ip()), mac_of(world.network.gateway()));
        // The neighbours are known, so that nothing here waits for ARP.
        b.serve(80);
        serve(&world.machine, "machine", 81);
        assert!(ask(&a.netns, (b.ip(), 80)).is_ok() && ask(&b.netns, (MACHINE, 81)).is_ok());
        let other = Ipv4Addr::new(10, 244, 0, 77);
        let multicast = Ipv4Addr::new(224, 0, 0, 1);
        let tagged = |inner: Vec<u8>| [&[0, 5][..], &IPV4, &inner].concat();
        // Straight to the other Pod.
        let straight = [
            ("STRAIGHT", frame(mb, ma, IPV4, &datagram(a.ip(), b.ip(), "STRAIGHT"))),
            (
                "FOREIGN-IP",
                frame(mb, ma, IPV4, &datagram(other, b.ip(), "FOREIGN-IP")),
            ),
            (
                "FOREIGN-MAC",
                frame(mb, mg, IPV4, &datagram(a.ip(), b.ip(), "FOREIGN-MAC")),
            ),
            (
                "BROADCAST",
                frame(ALL, ma, IPV4, &datagram(a.ip(), b.ip(), "BROADCAST")),
            ),
            (
                "MULTICAST",
                frame(
                    [1, 0, 0x5e, 0, 0, 1],
                    ma,
                    IPV4,
                    &datagram(a.ip(), multicast, "MULTICAST"),
                ),
            ),
            ("LINK-LOCAL", frame(mb, ma, IPV6, &datagram6(ma, "LINK-LOCAL"))),
            (
                "NEIGHBOURS",
                frame([0x33, 0x33, 0, 0, 0, 1], ma, IPV6, &datagram6(ma, "NEIGHBOURS")),
            ),
            (
                "TAGGED",
                frame(mb, ma, [0x81, 0], &tagged(datagram(a.ip(), b.ip(), "TAGGED"))),
            ),
            ("OTHER-TYPE", frame(mb, ma, [0x88, 0xb5], b"OTHER-TYPE")),
            ("LENGTH", frame(mb, ma, [0, 46], b"LENGTH")),
            // Even honest ARP is the machine's business alone.
            ("ARP-ASKS", frame(ALL, ma, ARP, &arp(1, ma, a.ip(), other, "ARP-ASKS"))),
            (
                "ARP-TELLS",
                frame(mb, ma, ARP, &arp(2, ma, a.ip(), b.ip(), "ARP-TELLS")),
            ),
            // To be believed to be the gateway.
            (
                "ARP-GATEWAY",
                frame(mb, ma, ARP, &arp(2, ma, world.network.gateway(), b.ip(), "ARP-GATEWAY")),
            ),
        ];
        // By way of the machine, but as somebody else.
        let routed = [
            (
                "ANOTHERS-IP",
                frame(mg, ma, IPV4, &datagram(other, b.ip(), "ANOTHERS-IP")),
            ),
            (
                "MACHINES-IP",
                frame(mg, ma, IPV4, &datagram(MACHINE, b.ip(), "MACHINES-IP")),
            ),
            ("ITS-IP", frame(mg, ma, IPV4, &datagram(b.ip(), b.ip(), "ITS-IP"))),
            (
                "ANOTHERS-MAC",
                frame(mg, mb, IPV4, &datagram(a.ip(), b.ip(), "ANOTHERS-MAC")),
            ),
        ];
        let good = frame(mg, ma, IPV4, &datagram(a.ip(), b.ip(), "HONEST"));
        let all = || straight.iter().chain(&routed);
        let marks: Vec<&str> = all().map(|(mark, _)| *mark).collect();
        let try_all = || {
            let listener = raw(&b.netns);
            all().for_each(|(_, frame)| send(&a, frame));
            send(&a, &good);
            seen(&listener, &marks, "HONEST")
        };
        assert_eq!(try_all(), Vec::<String>::new());

        // Who is whom stays as it was.
        let claims = [
            frame(mg, ma, ARP, &arp(2, ma, b.ip(), world.network.gateway(), "")),
            frame(ALL, ma, ARP, &arp(1, ma, b.ip(), b.ip(), "")),
            frame(ALL, mb, ARP, &arp(1, mb, b.ip(), other, "")),
            frame(ALL, ma, ARP, &arp(1, mb, a.ip(), other, "")),
            frame(ALL, mb, ARP, &arp(1, ma, a.ip(), other, "")),
        ];
        claims.iter().for_each(|claim| send(&a, claim));
        assert_eq!(ask(&world.machine, (b.ip(), 80)).unwrap().0, "b");
        assert_eq!(
            ask(&a.netns, (b.ip(), 80)).unwrap(),
            ("b".to_owned(), a.ip().to_string())
        );

        // The machine hears nobody under another's name either.
        let ear = netns::within(&world.machine, || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
        })
        .unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let gateway = world.network.gateway();
        for (mac, ip, text) in [
            (ma, b.ip(), "b"),
            (ma, other, "other"),
            (mb, b.ip(), "both"),
            (ma, a.ip(), "a"),
        ] {
            send(&a, &frame(mg, mac, IPV4, &datagram(ip, gateway, text)));
        }
        let mut heard = [0; 16];
        let (length, from) = ear.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..length], from.ip()), (&b"a"[..], std::net::IpAddr::V4(a.ip())));

        // The frames are good ones: without the rules they arrive (port and record of addresses hold some back).
        netns::within(&world.machine, || frames::remove_all().unwrap()).unwrap();
        let arrived = try_all();
        for mark in [
            "STRAIGHT",
            "FOREIGN-IP",
            "BROADCAST",
            "LINK-LOCAL",
            "NEIGHBOURS",
            "OTHER-TYPE",
            "ARP-GATEWAY",
            "ANOTHERS-IP",
        ] {
            assert!(arrived.iter().any(|one| one == mark), "{mark} of {arrived:?}");
        }
        // Somebody else took them away: the next start, or the guard, makes them anew, for the Pods that are there.
        let again = PodNetwork::new(world.config.clone()).await.unwrap();
        assert_eq!(try_all(), Vec::<String>::new());
        assert!(ask(&a.netns, (b.ip(), 80)).is_ok());
        let tasks = sampan_tasks::Tasks::new();
        let guard = again.clone();
        let drain = tasks.drain();
        tasks.spawn("guard", sampan_tasks::OnExit::Critical, async move {
            guard.guard(drain).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let remove = || {
            let mut t = Transaction::of(Family::Bridge, frames::TABLE);
            t.drop_table();
            t.commit().unwrap();
        };
        netns::within(&world.machine, remove).unwrap();
        let there = || {
            netns::within(&world.machine, || {
                crate::kernel::nft::table_exists_in(Family::Bridge, frames::TABLE).unwrap()
            })
            .unwrap()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !there() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(there());
        assert_eq!(try_all(), Vec::<String>::new());
        tasks.shutdown(Duration::from_secs(5)).await;
    }
}
