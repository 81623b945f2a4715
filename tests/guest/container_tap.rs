//! Containers behind a TAP device that the host's user has put into the host's network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::container::image;
use crate::container_kernel::answer;
use crate::container_life::User;
use crate::container_network::name_server;
use crate::disk::noise;
use crate::net::{ip, lasting_tap, md5, sender};
use crate::vm::PATIENCE;

/// The host's end and the VM's.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 81, 1);
const VM: Ipv4Addr = Ipv4Addr::new(10, 9, 81, 2);

/// Both directions; name servers; and a container that comes later has its own port of the VM's address.
#[test]
fn a_tap_leads_to_containers_and_out_of_them() {
    lasting_tap("vmmtest81");
    ip("addr add 10.9.81.1/24 dev vmmtest81");
    ip("link set vmmtest81 up");
    let user = User::new();
    let network = "tap:vmmtest81,address=10.9.81.2/24,gateway=10.9.81.1,dns=10.9.81.1";
    let options = ["--network", network, "--vm", "tap"];
    let serve = |words: &str| format!("echo {words} > /index.html; exec httpd -f -p 80 -h /");
    user.start(&[&options[..], &["--name", "one", "-p", "8080:80"]].concat(), &serve("one"));
    user.start(&[&options[..], &["--name", "two", "-p", "8081:80"]].concat(), &serve("two"));
    for (port, words) in [(8080, "one\n"), (8081, "two\n")] {
        let said = answer((VM, port));
        assert!(said.ends_with(words), "{port}: {said}");
    }
    assert!(TcpStream::connect((VM, 80)).is_err(), "what was not published is not let in");
    let image = image();
    let (code, why) = user.refuses(&[&["run"], &options[..], &["-p", "8081:81", &image, "true"]].concat());
    assert!(code == 125 && why.contains("port 8081 is container two's already"), "{why}");

    // Out of a container: bytes, and names.
    let bytes = noise(2 << 20);
    let to_guest = sender(TcpListener::bind((HOST, 7160)).expect("listening"), bytes.clone());
    let socket = UdpSocket::bind((HOST, 53)).expect("port 53");
    thread::spawn(move || name_server(socket));
    let script = "cat /etc/resolv.conf; nslookup some.name.example | grep -o '192.0.2.99'
        mkfifo /tmp/open; exec 3<>/tmp/open; nc 10.9.81.1 7160 <&3 | md5sum; ip route | grep default";
    let words = [&["run"], &options[..], &["--tmpfs", "/tmp", &image, "sh", "-c", script]].concat();
    let said = user.says(&words);
    to_guest.join().expect("all was sent");
    let lines = ["nameserver 10.9.81.1", "192.0.2.99", &format!("{}  -", md5(&bytes)), "default via 172.17.0.1"];
    lines.iter().for_each(|line| assert!(said.contains(line), "no {line}: {said}"));

    // The first one goes, and its port; the other one's stays.
    user.says(&["rm", "-f", "one"]);
    assert!(TcpStream::connect((VM, 8080)).is_err(), "the port is still there");
    let mut two = TcpStream::connect((VM, 8081)).expect("the other port");
    two.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut said = String::new();
    two.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").and_then(|()| two.read_to_string(&mut said)).expect("an answer");
    assert!(said.ends_with("two\n"), "{said}");
    user.says(&["rm", "-f", "two"]);
}

/// A device that is not there, or whose address is not the VM's: one line.
#[test]
fn a_tap_that_cannot_be_is_said_in_one_line() {
    let (user, image) = (User::new(), image());
    let refused = |network: &str, more: &[&str]| {
        let (code, why) = user.refuses(&[&["run", "--network", network], more, &[&image, "true"]].concat());
        assert_eq!((code, why.lines().count()), (125, 1), "{why}");
        why
    };
    let why = refused("tap:vmmtest82,address=10.9.82.2/24", &["-p", "127.0.0.1:8080:80"]);
    assert!(why.contains("at the VM's address, so none is to be given"), "{why}");
    let why = refused("tap:a-name-that-is-too-long,address=10.9.82.2/24", &[]);
    assert!(why.contains("a-name-that-is-too-long"), "{why}");
    let why = refused("tap:lo,address=10.9.82.2/24", &[]);
    assert!(why.contains("lo"), "{why}");
}
