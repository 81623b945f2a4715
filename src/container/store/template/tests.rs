//! Templates that are made, used, found bad, and in the way.

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), None).unwrap();
    (folder, store)
}

fn due(store: &Store, kind: &str) -> Making {
    match store.template(kind, 4096).unwrap() {
        Template::Due(making) => making,
        other => panic!("{kind}: {other:?}"),
    }
}

fn make(store: &Store, kind: &str) -> Saved {
    made(store, kind).files
}

fn made(store: &Store, kind: &str) -> Ready {
    assert!(matches!(store.template(kind, 4096).unwrap(), Template::None), "the first one boots");
    let making = due(store, kind);
    fs::write(&making.files().state, kind).unwrap();
    fs::write(&making.files().memory, [1; 5000]).unwrap();
    making.finish().unwrap()
}

fn ready(store: &Store, kind: &str) -> Ready {
    match store.template(kind, 4096).unwrap() {
        Template::Ready(ready) => ready,
        other => panic!("{kind}: {other:?}"),
    }
}

fn is_ready(store: &Store, kind: &str) -> bool {
    matches!(store.template(kind, 4096).unwrap(), Template::Ready(_))
}

#[test]
fn the_second_makes_it_and_the_third_uses_it() {
    let (_folder, store) = store();
    let made = make(&store, "a");
    let found = ready(&store, "a").files;
    assert_eq!((&found, fs::read_to_string(&found.state).unwrap().as_str()), (&made, "a"));
    assert!(!is_ready(&store, "b"), "that is another kind");
}

#[test]
fn what_fails_twice_is_not_made_again() {
    let (_folder, store) = store();
    let made = made(&store, "a");
    let files = made.files.clone();
    made.failed().unwrap();
    assert!(!files.memory.exists() && !files.state.exists());
    let making = due(&store, "a");
    fs::write(&making.files().memory, "half").unwrap();
    let half = making.files().memory.clone();
    drop(making);
    assert!(!half.exists());
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None), "it failed twice");
    let failed = File::options().write(true).open(files.state.with_extension(FAILED)).unwrap();
    failed.set_modified(SystemTime::now() - AGE).unwrap();
    drop(due(&store, "a"));
    assert_eq!(failed.metadata().unwrap().len(), 2, "those of a day ago count no more");
    store.remove_templates().unwrap();
    make(&store, "a");
}

#[test]
fn one_that_many_found_bad_failed_once() {
    let (_folder, store) = store();
    let others = [made(&store, "a"), ready(&store, "a"), ready(&store, "a")];
    let [one, two, late] = others;
    one.failed().unwrap();
    two.failed().unwrap();
    let next = due(&store, "a");
    fs::write(&next.files().state, "next").unwrap();
    fs::write(&next.files().memory, "next").unwrap();
    next.finish().unwrap();
    late.failed().unwrap();
    assert!(is_ready(&store, "a"), "that is another one");
    ready(&store, "a").failed().unwrap();
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None), "the second failure");
}

/// kill -9 of a process that makes one.
#[test]
fn one_whose_maker_was_ended_failed() {
    let (_folder, store) = store();
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
    for _ in 0..FAILURES {
        let making = due(&store, "a");
        fs::write(&making.files().memory, "half").unwrap();
        making._lock.unlock().unwrap();
        std::mem::forget(making);
    }
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
}

#[test]
fn one_process_makes_it_where_there_is_room() {
    let (_folder, store) = store();
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
    let making = due(&store, "a");
    assert!(matches!(store.template("a", 4096).unwrap(), Template::None));
    assert_eq!(store.remove_templates().unwrap(), (0, 0));
    let half = making.files().memory.clone();
    fs::write(&half, "half").unwrap();
    std::mem::forget(making.finish()); // without its state
    fs::write(&half, "of one that was killed").unwrap();
    drop(due(&store, "a"));
    assert_eq!(store.files(FOLDER).unwrap().len(), 3, "the lock, and that one was asked for, and failed");
}

#[test]
fn what_is_old_is_not_used() {
    let (_folder, store) = store();
    let made = make(&store, "a");
    let yesterday = SystemTime::now() - AGE;
    File::options().write(true).open(&made.memory).unwrap().set_modified(yesterday).unwrap();
    drop(due(&store, "a"));
    assert!(!made.memory.exists() && !made.state.exists());
}

#[test]
fn templates_make_room_for_images() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Some(20_000)).unwrap();
    let made = make(&store, "a");
    assert!(store.check_room(4000).is_ok() && made.state.exists());
    assert!(store.check_room(18_000).is_ok() && !made.state.exists());
    assert!(store.check_room(21_000).is_err());
    let made = make(&store, "b");
    assert!(store.make_room().unwrap() > 10_000 && !made.state.exists(), "nobody knows how much will come");
}

#[test]
fn a_large_vm_needs_no_room_for_all_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |limit: u64| {
        let store = Store::open(&folder.path().join(limit.to_string()), Some(limit)).unwrap();
        assert!(matches!(store.template("a", 1 << 50).unwrap(), Template::None), "the first one boots");
        store.template("a", 1 << 50).unwrap()
    };
    assert!(matches!(kind(ENOUGH - 1), Template::None));
    assert!(matches!(kind(ENOUGH), Template::Due(_)));
}

#[test]
fn only_their_user_comes_near_them() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, store) = store();
    make(&store, "a");
    let mode = store.root.join(FOLDER).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn those_that_were_used_last_are_kept_and_none_of_an_earlier_boot() {
    let (_folder, store) = store();
    let old = store.root.join(FOLDER).join("0123-4567.state");
    fs::create_dir(old.parent().unwrap()).unwrap();
    fs::write(&old, "").unwrap();
    for kind in ["a", "b", "c", "d"] {
        let made = make(&store, kind);
        let since = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(kind.as_bytes()[0]));
        File::open(made.state).unwrap().set_modified(since).unwrap();
    }
    assert!(!old.exists() && is_ready(&store, "a")); // by which it was used again
    make(&store, "e");
    let ready = ["a", "c", "d", "e"].map(|kind| is_ready(&store, kind));
    assert_eq!((ready, is_ready(&store, "b")), ([true; 4], false));
    assert!(store.used().unwrap() > 0);
    let (count, bytes) = store.remove_templates().unwrap();
    assert_eq!((count, bytes >= 4 * 5000), (4, true));
    assert_eq!(store.files(FOLDER).unwrap().len(), 1, "the lock");
}
