//! What a user at a terminal sees while an image comes, and that its layers come side by side.

use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::proxy::{Act, Proxy};
use crate::registry::registry;
use crate::support::Room;
use crate::terminal::Terminal;

/// How long layers wait for one another.
const PATIENCE: Duration = Duration::from_secs(30);

/// Each layer is answered when all have been asked for: one after the other they would never come.
#[test]
fn layers_come_side_by_side_and_a_terminal_shows_how_far() {
    let room = Room::new();
    let server = registry(&room);
    let layers: Vec<String> = serde_json::from_value(room.skopeo("oci:layout:v1")["Layers"].clone()).expect("a list");
    assert_eq!(layers.len(), 3);
    let (wanted, waiting) = (layers.clone(), Arc::new((Mutex::new(0), Condvar::new())));
    let proxy = Proxy::start(server.port, move |request, _| {
        if wanted.iter().any(|layer| request.path.ends_with(&format!("/blobs/{layer}"))) {
            let (count, more) = &*waiting;
            let mut asked = count.lock().expect("a count");
            *asked += 1;
            more.notify_all();
            let waited = more.wait_timeout_while(asked, PATIENCE, |asked| *asked < wanted.len()).expect("a count");
            if waited.1.timed_out() {
                return Act::json(404, "{}");
            }
        }
        Act::Pass
    });
    let terminal = Terminal::open();
    let mut command = room.image(&format!("pull {proxy}/group/app:1"));
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal.stdio());
    let mut pull = command.spawn().expect("start vmm");
    let mut user = terminal.user();
    drop((command, terminal)); // and with them this process's ends of the screen
    let reading = thread::spawn(move || {
        let mut shown = Vec::new();
        let _ = user.read_to_end(&mut shown); // ends with EIO when nobody has the screen
        String::from_utf8_lossy(&shown).into_owned()
    });
    let status = pull.wait().expect("its end");
    let shown = reading.join().expect("what was shown");
    assert!(status.success(), "{shown}");
    for layer in layers {
        let title = &layer["sha256:".len()..][..12];
        assert!(shown.contains(&format!("{title}  ")), "{title}: {shown}");
    }
    assert!(shown.contains("/ 3.00 MiB"), "how large the large one is: {shown}");
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
}
