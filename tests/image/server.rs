//! Debian's docker-registry, started by a test on loopback and ended with it.

use std::fmt;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often another port is tried, as somebody may take a free one meanwhile.
const TRIES: usize = 5;

/// A registry that runs.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// With its files in the directory `name` of `folder`, and more lines in its configuration; its port stands in `http`.
    pub fn start(folder: &Path, name: &str, more: &str) -> Self {
        for _ in 0..TRIES {
            if let Some(server) = Self::try_start(folder, name, more) {
                return server;
            }
        }
        panic!("docker-registry does not start: {:?}", std::fs::read_to_string(folder.join("registry.log")));
    }

    fn try_start(folder: &Path, name: &str, more: &str) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its number").port();
        // One `http` of two: YAML has each key once.
        let (http, rest) = match more.strip_prefix("http: {") {
            Some(http) => (format!(", {}", http.strip_suffix('}').expect("its end")), ""),
            None => (String::new(), more),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
            storage: {{filesystem: {{rootdirectory: {name}}}}}\nhttp: {{addr: '127.0.0.1:{port}'{http}}}\n{rest}\n"
        );
        let file = folder.join(format!("{name}.yml"));
        std::fs::write(&file, config).expect("a file");
        let log = std::fs::File::create(folder.join("registry.log")).expect("a file");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).current_dir(folder).stdin(Stdio::null());
        let errors = log.try_clone().expect("the log");
        let child = command.stdout(log).stderr(errors).spawn().expect("start docker-registry (Debian's package)");
        let mut server = Self { child, port };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait().expect("its state").is_some() || Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
