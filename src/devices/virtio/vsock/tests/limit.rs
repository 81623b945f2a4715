//! The limit of connections: who is one too many is refused, on each side; the others live, and make room.

use super::*;

/// What a guest's REQUEST is answered.
fn answer(guest: &mut Guest, port: u32) -> Header {
    guest.say(op::REQUEST, (port, 80), 0, &[]);
    guest.hear().0
}

#[test]
fn one_connection_too_many_is_refused() {
    socket::allow_many_descriptors();
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let most = u32::try_from(MAX_CONNECTIONS).unwrap();
    let mut hosts: Vec<UnixStream> = (0..most)
        .map(|port| {
            let heard = answer(&mut guest, port);
            assert_eq!((heard.op, heard.dst_port), (op::RESPONSE, port));
            listener.accept().unwrap().0
        })
        .collect();

    let refused = answer(&mut guest, most);
    assert_eq!((refused.op, refused.dst_port, refused.src_port), (op::RST, most, 80));
    let mut caller = UnixStream::connect(guest.path(None)).unwrap();
    caller.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(caller.read(&mut [0; 8]).unwrap(), 0, "closed without OK");

    for (port, host) in (0..most).zip(&mut hosts) {
        guest.say(op::RW, (port, 80), 0, &port.to_le_bytes());
        let mut got = [0; 4];
        host.read_exact(&mut got).unwrap();
        host.write_all(&got).unwrap();
        let (header, data) = guest.hear();
        assert_eq!((header.op, header.dst_port, data), (op::RW, port, port.to_le_bytes().to_vec()));
    }

    // One that goes makes room for one, of the guest's or of the host's.
    guest.say(op::RST, (7, 80), 0, &[]);
    assert_eq!(answer(&mut guest, most).op, op::RESPONSE);
    assert_eq!(answer(&mut guest, most + 1).op, op::RST);
    guest.say(op::RST, (8, 80), 0, &[]);
    let _host = guest.up();
    assert_eq!(answer(&mut guest, most + 1).op, op::RST);
}
