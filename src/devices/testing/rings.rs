//! The rig's rings: chains that are posted, right ones and wrong ones, and what comes back (virtio 1.2, 2.7). Test threads.

use super::*;

impl Rig {
    /// Writes one entry of a queue's descriptor table, or of any table at `table`.
    pub fn write_desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table.saturating_add(u64::from(index).saturating_mul(16));
        let [low, high] = [u64::from(len) | u64::from(flags) << 32, u64::from(next) << 48];
        self.memory.write_obj(addr.to_le(), GuestAddress(at)).expect("the table is in RAM");
        self.memory.write_obj((low | high).to_le(), GuestAddress(at.saturating_add(8))).expect("the table is in RAM");
    }

    /// Where the descriptor table of `queue` is.
    pub fn table(&self, queue: u32) -> u64 {
        rings(queue)
    }

    /// Puts `head` into the available ring, without a kick.
    pub fn make_available(&mut self, queue: u32, head: u16) {
        let state = self.queues.get_mut(&queue).expect("the queue is set up");
        let slot = u64::from(state.avail_idx % state.size).saturating_mul(2).saturating_add(4);
        state.avail_idx = state.avail_idx.wrapping_add(1);
        let idx = state.avail_idx;
        self.avail_write(queue, slot, head);
        self.set_avail_idx(queue, idx);
    }

    /// Sets avail.idx to anything.
    pub fn set_avail_idx(&self, queue: u32, idx: u16) {
        let at = rings(queue).saturating_add(AVAIL).saturating_add(2);
        self.memory.store(idx.to_le(), GuestAddress(at), Ordering::Release).expect("rings are in RAM");
    }

    /// Sets avail.flags (1: no interrupts, please).
    pub fn set_avail_flags(&self, queue: u32, flags: u16) {
        self.avail_write(queue, 0, flags);
    }

    /// Sets used_event: interrupt me when the used index goes past this (virtio 1.2, 2.7.7).
    pub fn set_used_event(&self, queue: u32, idx: u16) {
        let size = self.queues.get(&queue).expect("the queue is set up").size;
        self.avail_write(queue, u64::from(size).saturating_mul(2).saturating_add(4), idx);
    }

    /// avail_event: the device wants a kick when the available index goes past this.
    pub fn avail_event(&self, queue: u32) -> u16 {
        let size = self.queues.get(&queue).expect("the queue is set up").size;
        self.used_read(queue, u64::from(size).saturating_mul(8).saturating_add(4))
    }

    fn avail_write(&self, queue: u32, at: u64, value: u16) {
        let at = rings(queue).saturating_add(AVAIL).saturating_add(at);
        self.memory.store(value.to_le(), GuestAddress(at), Ordering::SeqCst).expect("rings are in RAM");
    }

    fn used_read(&self, queue: u32, at: u64) -> u16 {
        let at = rings(queue).saturating_add(USED).saturating_add(at);
        u16::from_le(self.memory.load(GuestAddress(at), Ordering::SeqCst).expect("rings are in RAM"))
    }

    /// Posts a chain, without a kick; returns its head.
    pub fn post(&mut self, queue: u32, buffers: &[Buffer]) -> u16 {
        let state = self.queues.get_mut(&queue).expect("the queue is set up");
        let indices: Vec<u16> = buffers.iter().map(|_| state.free.pop().expect("free descriptors")).collect();
        let head = *indices.first().expect("a chain has a buffer");
        self.write_chain(rings(queue), &indices, buffers);
        let state = self.queues.get_mut(&queue).expect("the queue is set up");
        state.busy.insert(head, indices);
        self.make_available(queue, head);
        head
    }

    /// A driver that never rests: fills the available ring with `head`. What is returned makes it available again so often
    /// that half of the ring is to be served, and kicks, each time that it is called.
    pub fn flood(&self, queue: u32, head: u16) -> impl FnMut() + Send + use<> {
        let size = self.queues.get(&queue).expect("the queue is set up").size;
        let [avail, used] = [AVAIL, USED].map(|part| rings(queue).saturating_add(part));
        for entry in 0..u64::from(size) {
            let at = avail.saturating_add(4).saturating_add(entry.saturating_mul(2));
            self.memory.write_obj(head.to_le(), GuestAddress(at)).expect("rings are in RAM");
        }
        let memory = SharedRam::clone(&self.memory);
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        let doorbell = self.transport.doorbells().get(index).expect("the queue is there");
        let doorbell = doorbell.try_clone().expect("a descriptor");
        move || {
            let index = |ring: u64| GuestAddress(ring.saturating_add(2));
            let done: u16 = memory.load(index(used), Ordering::Acquire).expect("rings are in RAM");
            let ahead = u16::from_le(done).wrapping_add(size / 2);
            memory.store(ahead.to_le(), index(avail), Ordering::Release).expect("rings are in RAM");
            doorbell.ring();
        }
    }

    /// Posts a chain through an indirect table, without a kick; returns its head.
    pub fn post_indirect(&mut self, queue: u32, buffers: &[Buffer]) -> u16 {
        let count = u16::try_from(buffers.len()).expect("a small chain");
        let len = u32::from(count).saturating_mul(16);
        let table = self.alloc(u64::from(len));
        self.write_chain(table, &(0..count).collect::<Vec<_>>(), buffers);
        let state = self.queues.get_mut(&queue).expect("the queue is set up");
        let head = state.free.pop().expect("free descriptors");
        state.busy.insert(head, vec![head]);
        let flags = u16::try_from(VRING_DESC_F_INDIRECT).unwrap_or(0);
        self.write_desc(rings(queue), head, table, len, flags, 0);
        self.make_available(queue, head);
        head
    }

    fn write_chain(&self, table: u64, indices: &[u16], buffers: &[Buffer]) {
        let nexts = indices.iter().skip(1).map(Some).chain([None]);
        for ((index, buffer), next) in indices.iter().zip(buffers).zip(nexts) {
            let mut flags = if buffer.writable { WRITE } else { 0 };
            flags |= if next.is_some() { u16::try_from(VRING_DESC_F_NEXT).unwrap_or(0) } else { 0 };
            self.write_desc(table, *index, buffer.addr, buffer.len, flags, next.copied().unwrap_or(0));
        }
    }

    /// Rings the doorbell, as ioeventfd does.
    pub fn kick(&mut self, queue: u32) {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        self.transport.doorbells().get(index).expect("the queue is there").ring();
    }

    /// Waits until the worker has seen every kick so far.
    pub fn settle(&mut self) {
        assert!(self.transport.worker().ping(PATIENCE), "the worker does not answer");
    }

    /// The used ring's index, at this very moment.
    pub fn used_idx(&self, queue: u32) -> u16 {
        self.used_read(queue, 2)
    }

    /// Takes one entry from the used ring: head and length. Nothing when there is none.
    pub fn take_used(&mut self, queue: u32) -> Option<(u16, u32)> {
        let idx = self.used_idx(queue);
        let state = self.queues.get_mut(&queue).expect("the queue is set up");
        if idx == state.last_used {
            return None;
        }
        let slot = u64::from(state.last_used % state.size).saturating_mul(8).saturating_add(4);
        state.last_used = state.last_used.wrapping_add(1);
        let at = GuestAddress(rings(queue).saturating_add(USED).saturating_add(slot));
        let entry = u64::from_le(self.memory.read_obj(at).expect("rings are in RAM"));
        let head = u16::try_from(entry & 0xffff_ffff).expect("the used id is a descriptor's");
        let freed = state.busy.remove(&head).expect("the used id is one that was posted");
        state.free.extend(freed);
        Some((head, u32::try_from(entry >> 32).unwrap_or(0)))
    }

    /// Waits by interrupt for an entry of the used ring.
    pub fn wait_used(&mut self, queue: u32) -> (u16, u32) {
        let since = Instant::now();
        loop {
            if self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0 {
                let next = self.queues.get(&queue).expect("the queue is set up").last_used;
                self.set_used_event(queue, next);
            }
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(since.elapsed() < PATIENCE, "no buffer was used; status {:#x}", self.status());
            self.wait_interrupt();
        }
    }

    /// Looks for a used chain until there is one: for a driver that wants no interrupts.
    pub fn poll_used(&mut self, queue: u32) -> (u16, u32) {
        let since = Instant::now();
        loop {
            self.settle();
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(since.elapsed() < PATIENCE, "no buffer was used; status {:#x}", self.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Posts a chain, kicks, and waits for it; returns the used length.
    pub fn request(&mut self, queue: u32, buffers: &[Buffer]) -> u32 {
        let head = self.post(queue, buffers);
        self.kick(queue);
        let (used, len) = self.wait_used(queue);
        assert_eq!(used, head, "requests are served in order");
        len
    }
}

pub(super) fn rings(queue: u32) -> u64 {
    u64::from(queue).saturating_mul(RINGS_STRIDE).saturating_add(RINGS)
}
