//! The balloon over the Rig: which pages go, and what the configuration space says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{Buffer, PATIENCE, RAM, Rig};
use crate::virtio::DeviceConfig;
use crate::virtio::transport::RING_FEATURES;

const PAGES: std::ops::Range<u64> = 0x100..0x110;

fn config() -> BalloonConfig {
    serde_json::from_str(r#"{ "amount_mib": 3, "stats_polling_interval_s": 1 }"#).unwrap()
}

/// A rig whose pages are full of 0x77, with a driver that takes `features`.
fn rig(features: u64) -> Rig {
    let mut rig = Rig::new(Box::new(Balloon::open(&config()).unwrap()));
    rig.drive(RING_FEATURES | features);
    for page in PAGES {
        rig.memory().write_slice(&[0x77; 4096], GuestAddress(page << 12)).unwrap();
    }
    rig
}

/// Which of the pages are still there.
fn left(rig: &Rig) -> Vec<u64> {
    let first = |page: u64| rig.memory().read_obj::<u8>(GuestAddress(page << 12)).unwrap();
    let last = |page: u64| rig.memory().read_obj::<u8>(GuestAddress((page << 12) + 4095)).unwrap();
    PAGES.filter(|page| (first(*page), last(*page)) == (0x77, 0x77)).collect()
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn inflating_takes_exactly_the_pages_named() {
    let mut rig = rig(0);
    let request = rig.readable(&numbers(&[0x103, 0x104, 0x102, 0x108, 0x10f, 0x10e]));
    assert_eq!(rig.request(0, &[request]), 0);
    let gone = [0x102, 0x103, 0x104, 0x108, 0x10e, 0x10f];
    assert_eq!(left(&rig), PAGES.filter(|page| !gone.contains(page)).collect::<Vec<_>>());
    let request = rig.readable(&numbers(&[0x103]));
    assert_eq!(rig.request(1, &[request]), 0, "deflating is answered");
    assert_eq!(["inflate_count", "deflate_count"].map(|name| rig.counted(name)), [1, 1]);
    assert!(!rig.needs_reset());
}

#[test]
fn pages_that_are_not_ram_are_passed_over() {
    let mut rig = rig(0);
    let request = rig.readable(&numbers(&[u32::MAX, (RAM >> 12) as u32, 0x100, 0x7fff_ffff]));
    assert_eq!(rig.request(0, &[request]), 0);
    assert_eq!(left(&rig), (0x101..0x110).collect::<Vec<_>>());
    let odd = rig.readable(&[1, 2, 3]);
    assert_eq!(rig.request(0, &[odd]), 0);
    assert!(!rig.needs_reset());
}

#[test]
fn too_many_numbers_break_it() {
    let mut rig = rig(0);
    rig.post(0, &[Buffer { addr: 0x40000, len: 65_540, writable: false }]);
    rig.kick(0);
    rig.settle();
    assert!(rig.needs_reset());
}

#[test]
fn reported_ranges_go_page_by_page() {
    // The driver took reporting and no statistics: its third queue is the one for reports.
    let mut rig = rig(REPORTING);
    let range = |addr: u64, len: u32| Buffer { addr, len, writable: true };
    let ranges = [range(0x10_2800, 0x2000), range(0x10_8000, 0x3000), range(RAM - 4096, 1 << 20), range(u64::MAX, 9)];
    assert_eq!(rig.request(2, &ranges), 0);
    let gone = [0x103, 0x108, 0x109, 0x10a];
    let counted = ["count", "freed", "fails"].map(|name| rig.counted(&format!("free_page_report_{name}")));
    assert_eq!(counted, [1, 5 << 12, 0], "and the last page of RAM");
    assert_eq!(rig.counted("free_page_hint_count"), 0);
    assert_eq!(left(&rig), PAGES.filter(|page| !gone.contains(page)).collect::<Vec<_>>());
    assert!(!rig.needs_reset());
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let mut rig = rig(STATS_VQ | REPORTING);
    for round in 0..2 {
        let mut statistics = vec![4, 0];
        statistics.extend(u64::to_le_bytes(round));
        let buffer = rig.readable(&statistics);
        let head = rig.post(2, &[buffer]);
        rig.kick(2);
        assert_eq!(rig.wait_used(2), (head, 0)); // by the timer
    }
    assert_eq!(rig.counted("stats_updates_count"), 2);
    assert!(!rig.needs_reset());
}

/// A balloon that looks at its statistics once somebody wants the worker, if it is to.
struct Late(Balloon, Arc<AtomicBool>);

impl Device for Late {
    fn facts(&self) -> Facts {
        self.0.facts()
    }

    fn started(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.0.started(io)
    }

    fn kicked(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Broken> {
        let since = Instant::now();
        while self.1.load(Ordering::Relaxed) && !io.is_wanted() && since.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        self.0.kicked(queue, io)
    }

    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        self.0.finish(io)
    }

    fn stopping(&mut self, why: Stop) {
        self.0.stopping(why);
    }
}

/// A buffer that comes while another one waits sends that one back: without end, where the driver has another CPU for it.
#[test]
fn a_reset_does_not_wait_for_a_driver_that_never_stops_telling() {
    let late = Arc::new(AtomicBool::new(false));
    let mut rig = Rig::new(Box::new(Late(Balloon::open(&config()).unwrap(), Arc::clone(&late))));
    rig.drive(RING_FEATURES | STATS_VQ);
    rig.settle();
    let buffer = rig.readable(&[0; 10]);
    (0..40).for_each(|_| _ = rig.post(2, &[buffer]));
    late.store(true, Ordering::Relaxed);
    rig.kick(2);
    rig.begin();
    assert_eq!(rig.used_idx(2), 0, "none was sent back while the reset waited");
}

#[test]
fn the_configuration_says_what_is_wanted_and_what_is_there() {
    let mut rig = rig(0);
    assert_eq!(rig.config(0, 8), [768_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat());
    rig.write(crate::virtio::registers::offset::CONFIG + 4, 700);
    assert_eq!(rig.config(0, 8), [768_u32.to_le_bytes(), 700_u32.to_le_bytes()].concat());
    rig.write(crate::virtio::registers::offset::CONFIG, 1);
    assert_eq!(rig.config(0, 4), 768_u32.to_le_bytes());
}

fn update(rig: &mut Rig, change: impl FnOnce(&mut BalloonConfig), key: &str) -> Result<(), String> {
    let mut wanted = config();
    change(&mut wanted);
    rig.update(&DeviceConfig::Balloon(wanted), &[key]).map_err(|error| error.to_string())
}

#[test]
fn the_target_can_be_changed() {
    let mut rig = rig(STATS_VQ);
    rig.take_interrupt();
    update(&mut rig, |config| config.amount_mib = 5, "amount_mib").unwrap();
    assert_eq!(rig.take_interrupt().map(|bits| bits & 2), Some(2), "the driver hears of it");
    assert_eq!(rig.config(0, 4), 1280_u32.to_le_bytes());
    let request = rig.readable(&numbers(&[0x100]));
    assert_eq!(rig.request(0, &[request]), 0, "and the device goes on");
    rig.drive(RING_FEATURES);
    assert_eq!(rig.config(0, 4), 1280_u32.to_le_bytes(), "a later driver sees it, too");
}

#[test]
fn statistics_are_kept_over_an_update_and_shown() {
    let mut rig = rig(STATS_VQ);
    let pairs = [(4_u16, 1_u64 << 20), (5, 1 << 30), (0xfff0, 9), (16, 9)];
    let told: Vec<u8> =
        pairs.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect();
    let buffer = rig.readable(&told);
    rig.post(2, &[buffer]);
    rig.kick(2);
    rig.settle();
    let text = "statistics can not be switched on or off while the VM exists (stats_polling_interval_s)";
    assert_eq!(
        update(&mut rig, |config| config.stats_polling_interval_s = 0, "stats_polling_interval_s"),
        Err(text.into())
    );
    update(&mut rig, |config| config.stats_polling_interval_s = 60, "stats_polling_interval_s").unwrap();
    let wanted = serde_json::json!({
        "target_pages": 768, "target_mib": 3, "actual_pages": 0, "actual_mib": 0,
        "free_memory": 1 << 20, "total_memory": 1 << 30
    });
    assert_eq!(rig.transport().worker().inspect()["statistics"], wanted);
    let without = BalloonConfig { stats_polling_interval_s: 0, ..config() };
    let mut rig = Rig::new(Box::new(Balloon::open(&without).unwrap()));
    let nothing = serde_json::json!({ "statistics": null, "hinting": null, "reporting": { "paused": false } });
    assert_eq!(rig.transport().worker().inspect(), nothing);
}

/// The buffer of the statistics is the device's during a pause, as before, and comes back by the timer.
#[test]
fn a_pause_loses_no_statistics() {
    let mut rig = rig(STATS_VQ);
    let buffer = rig.readable(&[0; STATISTIC]);
    let head = rig.post(2, &[buffer]);
    rig.kick(2);
    rig.settle();
    rig.pause();
    rig.resume();
    assert_eq!(rig.wait_used(2), (head, 0));
}

#[test]
fn runs_grow_both_ways() {
    let mut run = Run::default();
    assert_eq!([5, 6, 4, 9, 8, 20].map(|page| run.add(page)), [None, None, None, Some((4, 3)), None, Some((8, 2))]);
    assert_eq!((run.take(), run.take()), (Some((20, 1)), None));
    assert_eq!((Run::default().add(u64::MAX), Run::default().add(0)), (None, None));
}

fn hinting(rig: &mut Rig, hint: Hint) -> Result<(), String> {
    let change = BalloonChange { hint: Some(hint), ..BalloonChange::default() };
    rig.transport().transport().update(Change::Balloon(change)).map_err(|error| error.to_string())
}

#[test]
fn hinted_pages_go_while_a_run_lasts() {
    let config = BalloonConfig { free_page_hinting: true, ..config() };
    let mut rig = Rig::new(Box::new(Balloon::open(&config).unwrap()));
    let start = Hint::Start { acknowledge_on_stop: true };
    assert!(hinting(&mut rig, start).unwrap_err().contains("not taken"), "there is no driver yet");
    rig.drive(RING_FEATURES | HINTING | REPORTING);
    let fill = |rig: &Rig| {
        PAGES.for_each(|page| rig.memory().write_slice(&[0x77; 4096], GuestAddress(page << 12)).unwrap());
    };
    let command = |rig: &mut Rig| u32::from_le_bytes(rig.config(8, 4).try_into().unwrap());
    let say = |rig: &mut Rig, command: u32| {
        let buffer = rig.readable(&command.to_le_bytes());
        rig.request(2, &[buffer]);
    };
    let pages = [Buffer { addr: 0x10_2000, len: 0x2000, writable: true }];
    let gone = || PAGES.filter(|page| ![0x102, 0x103].contains(page)).collect::<Vec<_>>();
    fill(&rig);
    assert_eq!(command(&mut rig), 0);
    rig.request(2, &pages);
    assert_eq!(left(&rig), PAGES.collect::<Vec<_>>(), "nobody asked");

    hinting(&mut rig, start).unwrap();
    assert_eq!(command(&mut rig), 2);
    rig.request(2, &pages);
    assert_eq!(left(&rig), PAGES.collect::<Vec<_>>(), "the guest has not begun");
    say(&mut rig, 2);
    rig.request(2, &pages);
    assert_eq!(left(&rig), gone());
    let counted = ["count", "freed", "fails"].map(|name| rig.counted(&format!("free_page_hint_{name}")));
    assert_eq!(counted, [4, 2 << 12, 0], "pages in vain twice, a command, pages");
    say(&mut rig, 0);
    // The buffer is back a moment before the configuration changes; who is asked has done both.
    let status = rig.transport().worker().inspect();
    assert_eq!(command(&mut rig), 1, "the guest may use its pages again");
    assert_eq!(status["hinting"], serde_json::json!({ "host_cmd": 1, "guest_cmd": 0 }));
    fill(&rig);
    rig.request(2, &pages);
    assert_eq!(left(&rig), PAGES.collect::<Vec<_>>(), "the run is over");

    hinting(&mut rig, Hint::Start { acknowledge_on_stop: false }).unwrap();
    assert_eq!(command(&mut rig), 3);
    say(&mut rig, 2);
    rig.request(2, &pages);
    assert_eq!(left(&rig), PAGES.collect::<Vec<_>>(), "pages of another run");
    say(&mut rig, 3);
    say(&mut rig, 0);
    assert_eq!(command(&mut rig), 3, "not acknowledged");
    hinting(&mut rig, Hint::Stop).unwrap();
    assert_eq!(command(&mut rig), 1);
    assert!(!rig.needs_reset());
}

#[test]
fn reports_wait_while_they_are_paused() {
    let mut rig = rig(REPORTING);
    let pause = |rig: &mut Rig, paused| {
        let change = BalloonChange { pause_reporting: Some(paused), ..BalloonChange::default() };
        rig.transport().transport().update(Change::Balloon(change)).unwrap();
        let told = rig.transport().worker().inspect();
        assert_eq!(told["reporting"], serde_json::json!({ "paused": paused }));
    };
    let pages = [Buffer { addr: 0x10_2000, len: 0x2000, writable: true }];
    pause(&mut rig, true);
    pause(&mut rig, true);
    let head = rig.post(2, &pages);
    rig.kick(2);
    rig.settle();
    assert!(rig.take_used(2).is_none(), "the driver keeps the pages unused until it is answered");
    assert_eq!(left(&rig), PAGES.collect::<Vec<_>>());
    let inflated = rig.readable(&numbers(&[0x108]));
    rig.request(0, &[inflated]);
    assert_eq!(left(&rig), PAGES.filter(|page| *page != 0x108).collect::<Vec<_>>(), "the balloon itself goes on");
    pause(&mut rig, false); // and no kick comes
    assert_eq!(rig.wait_used(2).0, head);
    assert_eq!(left(&rig), PAGES.filter(|page| ![0x102, 0x103, 0x108].contains(page)).collect::<Vec<_>>());
}

#[test]
fn reports_that_nobody_makes_are_not_paused() {
    let config = BalloonConfig { free_page_reporting: false, ..config() };
    let mut rig = Rig::new(Box::new(Balloon::open(&config).unwrap()));
    let change = BalloonChange { pause_reporting: Some(true), ..BalloonChange::default() };
    let refused = rig.transport().transport().update(Change::Balloon(change)).unwrap_err();
    assert_eq!(refused.to_string(), "free page reporting is off (free_page_reporting)");
    assert!(rig.transport().worker().inspect()["reporting"].is_null());
}
