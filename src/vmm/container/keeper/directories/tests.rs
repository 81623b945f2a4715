//! The shares of a VM, with an agent and an API that say what they are told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ::container::session::Session;
use protocol::message::{Done, Failure, Order};

use super::*;

/// A VM: what its API was asked for, and whether its guest lets go of directories.
struct Stub {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Value>>>,
    lets_go: Arc<AtomicBool>,
}

impl Stub {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (asked, lets_go) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
        let (noted, says) = (Arc::clone(&asked), Arc::clone(&lets_go));
        serve(&folder.path().join("api"), move |stream| {
            let asked = body(&stream);
            let status = if asked["path_on_host"] == "/bad" { "400 Bad Request" } else { "204 No Content" };
            let text = if status.starts_with("400") {
                json!({"fault_message": "it is bad"}).to_string()
            } else {
                String::new()
            };
            noted.lock().unwrap().push(asked);
            let mut stream = &stream;
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        });
        serve(&folder.path().join("agent"), move |stream| {
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\n") {
                (&stream).read_exact(&mut byte).unwrap();
                line.push(byte[0]);
            }
            (&stream).write_all(b"OK 1\n").unwrap();
            let mut session = Session::new(stream);
            assert!(matches!(session.message().unwrap(), Order::Release(VolumeSource::Share { .. })));
            let done = if says.load(Ordering::SeqCst) { Done::Ok } else { Done::Failed(Failure::engine("it is used")) };
            session.say(&done).unwrap();
        });
        Self { folder, asked, lets_go }
    }

    fn directories(&self, count: usize) -> Directories {
        Directories::new(count, self.folder.path().join("agent"), self.folder.path().join("api"))
    }

    /// Which path each share was given last: those that the API was asked for since the last look.
    fn asked(&self) -> Vec<(String, String)> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        asked.iter().map(|body| (text(&body["tag"]), text(&body["path_on_host"]))).collect()
    }
}

fn serve(at: &Path, answer: impl Fn(UnixStream) + Send + 'static) {
    let listening = UnixListener::bind(at).unwrap();
    thread::spawn(move || listening.incoming().flatten().for_each(answer));
}

/// The body of a request.
fn body(stream: &UnixStream) -> Value {
    let mut reader = BufReader::new(stream);
    let mut len = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(number) = line.strip_prefix("Content-Length: ") {
            len = number.trim().parse().unwrap();
        }
        if line == "\r\n" {
            let mut body = vec![0; len];
            reader.read_exact(&mut body).unwrap();
            return serde_json::from_slice(&body).unwrap();
        }
    }
}

fn share(path: &str) -> Share {
    Share { path: path.into(), read_only: false }
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(tag, path)| ((*tag).to_owned(), (*path).to_owned())).collect()
}

#[test]
fn a_directory_is_counted_and_goes_with_its_last_user() {
    let vm = Stub::new();
    let directories = vm.directories(2);
    let first = directories.show(&[share("/a")]).unwrap();
    assert_eq!(directories.show(&[share("/a")]).unwrap(), first);
    let other_right = Share { read_only: true, ..share("/a") };
    assert_eq!(directories.show(&[other_right]).unwrap(), ["share-1"]);
    assert_eq!(vm.asked(), pairs(&[("share-0", "/a"), ("share-1", "/a")]));
    directories.leave(&first);
    assert_eq!(vm.asked(), []);
    directories.leave(&first);
    assert_eq!(vm.asked(), pairs(&[("share-0", "")]));
    directories.leave(&first); // who has gone twice takes nobody's
    assert_eq!(directories.show(&[share("/b")]).unwrap(), ["share-0"]);
    assert_eq!(vm.asked(), pairs(&[("share-0", "/b")]));
}

#[test]
fn what_can_not_be_is_one_line_and_changes_nothing() {
    let vm = Stub::new();
    let directories = vm.directories(2);
    let kept = directories.show(&[share("/kept")]).unwrap();
    let why = directories.show(&[share("/a"), share("/kept"), share("/b")]).unwrap_err();
    let told = "it sees 2 directories already, which is all that it can see, and not /b; end a container that has one, or use \
                another --vm or a named volume";
    assert_eq!(why, told);
    assert_eq!(vm.asked(), pairs(&[("share-0", "/kept"), ("share-1", "/a"), ("share-1", "")]));
    assert_eq!(directories.show(&[share("/bad")]).unwrap_err(), "it is bad");
    assert_eq!(directories.show(&[share("/c")]).unwrap(), ["share-1"]);
    directories.leave(&kept);
    assert_eq!(directories.show(&[share("/d")]).unwrap(), ["share-0"], "/kept had one user");
}

#[test]
fn what_a_guest_does_not_let_go_of_stays() {
    let vm = Stub::new();
    let directories = vm.directories(1);
    let tags = directories.show(&[share("/a")]).unwrap();
    vm.lets_go.store(false, Ordering::SeqCst);
    directories.leave(&tags);
    assert_eq!(vm.asked(), pairs(&[("share-0", "/a")]), "it is not taken away");
    assert!(directories.show(&[share("/b")]).is_err());
    assert_eq!(directories.show(&[share("/a")]).unwrap(), tags);
    vm.lets_go.store(true, Ordering::SeqCst);
    directories.leave(&tags);
    assert_eq!(directories.show(&[share("/b")]).unwrap(), tags);
}

#[test]
fn who_comes_while_one_leaves_waits_for_it() {
    let vm = Stub::new();
    let directories = vm.directories(1);
    let tags = directories.show(&[share("/a")]).unwrap();
    let leaving = directories.left(&tags[0]).expect("it was the last");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| directories.show(&[share("/b")]));
        directories.lock()[leaving.0] = Holds::Nothing;
        directories.settled.notify_all();
        assert_eq!(waiting.join().unwrap().unwrap(), tags);
    });
}
