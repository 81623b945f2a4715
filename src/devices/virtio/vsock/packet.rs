//! The header of a vsock packet (virtio 1.2, 5.10.6), read and written. Pure.

/// Bytes of struct virtio_vsock_hdr.
pub const HEADER: usize = 44;
/// The host's CID (5.10.4).
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;
/// Most bytes of data in one packet.
pub const MAX_DATA: u32 = 64 << 10;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// VIRTIO_VSOCK_OP_*.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// struct virtio_vsock_hdr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads one.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(next(&mut rest)),
            dst_cid: u64::from_le_bytes(next(&mut rest)),
            src_port: u32::from_le_bytes(next(&mut rest)),
            dst_port: u32::from_le_bytes(next(&mut rest)),
            len: u32::from_le_bytes(next(&mut rest)),
            kind: u16::from_le_bytes(next(&mut rest)),
            op: u16::from_le_bytes(next(&mut rest)),
            flags: u32::from_le_bytes(next(&mut rest)),
            buf_alloc: u32::from_le_bytes(next(&mut rest)),
            fwd_cnt: u32::from_le_bytes(next(&mut rest)),
        }
    }

    /// As it stands in guest memory.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        for word in [self.src_port, self.dst_port, self.len] {
            put(&mut rest, word.to_le_bytes());
        }
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        for word in [self.flags, self.buf_alloc, self.fwd_cnt] {
            put(&mut rest, word.to_le_bytes());
        }
        bytes
    }

    /// The reset that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

fn next<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut value = [0; N];
    if let Some((first, later)) = rest.split_first_chunk::<N>() {
        value = *first;
        *rest = later;
    }
    value
}

fn put<const N: usize>(rest: &mut &mut [u8], value: [u8; N]) {
    if let Some((first, later)) = std::mem::take(rest).split_first_chunk_mut::<N>() {
        *first = value;
        *rest = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_44_bytes_in_the_specification_s_order() {
        let header = Header {
            src_cid: 0x0102,
            dst_cid: 2,
            src_port: 0x0304,
            dst_port: 0x0506,
            len: 7,
            kind: 1,
            op: op::RW,
            flags: 8,
            buf_alloc: 9,
            fwd_cnt: 10,
        };
        let bytes: [u8; HEADER] = header.to_bytes();
        assert_eq!((bytes[0], bytes[1], bytes[8], bytes[16], bytes[20], bytes[24]), (2, 1, 2, 4, 6, 7));
        assert_eq!((bytes[28], bytes[30], bytes[32], bytes[36], bytes[40]), (1, 5, 8, 9, 10));
        assert_eq!(Header::parse(&bytes), header);
    }
}
