//! passt, which connects a guest with the rights of the user that runs it: found, started, heard. The control thread.
//!
//! It inherits one end of a pair of sockets, so that there is no path and no race for it. When it is ready it goes into
//! the background: its first process ends, and from there on the socket is all that connects us. passt ends when our end
//! closes, however this process ends; when passt ends, our end hears of it.
#![allow(unsafe_code)] // what runs in the child before exec

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};

use super::publish::Publish;
use super::user::UserConfig;
use crate::child::find;

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(10);
/// How long a port may be in use: the passt of a VM that is restarted needs a moment to end.
const PORT: Duration = Duration::from_secs(1);
/// Most of what it says at its start that is read, bytes.
const WORDS: u64 = 16 << 10;

/// Starts passt; a stream of frames to it. `mtu`: the largest packet, bytes, where the user chose one.
pub fn start(config: &UserConfig, mtu: Option<u16>) -> io::Result<UnixStream> {
    ports(config).try_for_each(|port| check_port(&port))?;
    let program = config
        .passt
        .clone()
        .or_else(|| find("passt", &[]))
        .ok_or_else(|| io::Error::other("passt was not found on the PATH (Debian has it in the package passt)"))?;
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let mut command = Command::new(&program);
    command.arg("--fd").arg(theirs.as_raw_fd().to_string()).args(arguments(config, mtu));
    // A group of its own: a terminal's Ctrl-C is not meant for it.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: the closure runs in the child between fork and exec; it makes one system call and allocates nothing.
    unsafe { command.pre_exec(move || Ok(fcntl_setfd(&theirs, FdFlags::empty())?)) };
    let child = command.spawn();
    let child = child.map_err(|error| io::Error::new(error.kind(), format!("start {}: {error}", program.display())))?;
    drop(command); // and passt's end of the pair with it
    ready(child)?;
    Ok(ours)
}

/// What it is told besides the socket.
fn arguments(config: &UserConfig, mtu: Option<u16>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["--quiet".into()];
    if let Some(mtu) = mtu {
        words.extend(["--mtu".into(), mtu.to_string().into()]);
    }
    if let Some(own) = config.own() {
        let (address, prefix) = (own.address.to_string(), own.prefix.to_string());
        let (gateway, nameserver) = (own.gateway.to_string(), own.nameserver.to_string());
        words.extend(["--ipv4-only", "--no-map-gw", "--address", &address, "--netmask", &prefix].map(OsString::from));
        words.extend(["--gateway", &gateway, "--dns-forward", &nameserver].map(OsString::from));
    }
    for port in ports(config) {
        for option in [port.tcp.then_some("--tcp-ports"), port.udp.then_some("--udp-ports")].into_iter().flatten() {
            words.extend([option.into(), port.to_string().into()]);
        }
    }
    words
}

/// The ports, on addresses of the kind that passt serves.
fn ports(config: &UserConfig) -> impl Iterator<Item = Publish> {
    let only_ipv4 = config.address.is_some();
    config.ports().map(move |port| match port.address {
        None if only_ipv4 => Publish { address: Some(Ipv4Addr::UNSPECIFIED.into()), ..port },
        _ => port,
    })
}

/// Waits until passt is in the background, or has failed.
fn ready(mut child: Child) -> io::Result<()> {
    let since = Instant::now();
    let ended = loop {
        match child.try_wait()? {
            None if since.elapsed() < START => std::thread::sleep(Duration::from_millis(1)),
            ended => break ended,
        }
    };
    let why = match ended {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("passt ended with {status}"),
        None => {
            child.kill()?;
            child.wait()?;
            format!("passt was not ready after {} s", START.as_secs())
        }
    };
    let mut text = Vec::new();
    if let Some(said) = child.stderr.take() {
        fcntl_setfl(&said, OFlags::NONBLOCK)?;
        let _ = said.take(WORDS).read_to_end(&mut text); // what was read until an error counts
    }
    Err(io::Error::other(format!("{why}: {}", last_words(&String::from_utf8_lossy(&text)))))
}

/// The line that says why. Older versions tell that there is no system logger for each line, and after an option that they
/// do not know they explain all others.
fn last_words(text: &str) -> &str {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    lines.filter(|line| !line.is_empty() && !line.starts_with("Failed to send ")).last().unwrap_or("it said nothing")
}

/// Whether passt will get its port. Older versions go on without one that is in use.
fn check_port(port: &Publish) -> io::Result<()> {
    let since = Instant::now();
    let error = loop {
        match try_port(port) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && since.elapsed() < PORT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => break error,
        }
    };
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses it".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "no permission (ports below net.ipv4.ip_unprivileged_port_start, mostly 1024, take root)".to_owned()
        }
        _ => error.to_string(),
    };
    let one = port.address.filter(|address| !address.is_unspecified());
    let address = one.map_or(String::new(), |address| format!(" of {address}"));
    Err(io::Error::other(format!("publish port {}{address}: {why}", port.host)))
}

/// Takes the port for a moment.
fn try_port(port: &Publish) -> io::Result<()> {
    let bind = |address: IpAddr| {
        let address = SocketAddr::new(address, port.host);
        if port.tcp {
            TcpListener::bind(address)?;
        }
        if port.udp {
            UdpSocket::bind(address)?;
        }
        Ok(())
    };
    match port.address {
        Some(address) => bind(address),
        // A socket of IPv6 is one of IPv4, too; but a host may have no IPv6.
        None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                bind(Ipv4Addr::UNSPECIFIED.into())
            }
            done => done,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A program that does what a shell script says; $2 is the descriptor.
    fn fake(dir: &tempfile::TempDir, script: &str) -> UserConfig {
        let path: PathBuf = dir.path().join("passt");
        let mut file = std::fs::File::create(&path).unwrap();
        write!(file, "#!/bin/bash\n{script}\n").unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o755)).unwrap();
        UserConfig { passt: Some(path), ..UserConfig::default() }
    }

    fn refusal(config: &UserConfig) -> String {
        start(config, None).unwrap_err().to_string()
    }

    #[test]
    fn it_is_told_what_to_do() {
        let publish = ["8080:80", "127.0.0.1:53:53/udp", "[::1]:22:22/tcp"].map(str::to_owned).to_vec();
        let config = UserConfig { publish, ..UserConfig::default() };
        let words = |mtu| arguments(&config, mtu).join(" ".as_ref()).into_string().unwrap();
        let ports =
            "--tcp-ports 8080:80 --udp-ports 8080:80 --udp-ports 127.0.0.1/53:53 --tcp-ports ::1/22:22".to_owned();
        assert_eq!(words(None), format!("--quiet {ports}"));
        assert_eq!(words(Some(1400)), format!("--quiet --mtu 1400 {ports}"));
        let (address, publish) = (Some("10.0.2.15/24".to_owned()), vec!["80:8080/tcp".to_owned()]);
        let own = UserConfig { address, publish, ..UserConfig::default() };
        assert_eq!(
            arguments(&own, None).join(" ".as_ref()).into_string().unwrap(),
            "--quiet --ipv4-only --no-map-gw --address 10.0.2.15 --netmask 24 --gateway 10.0.2.1 --dns-forward 10.0.2.2 \
             --tcp-ports 0.0.0.0/80:8080"
        );
    }

    #[test]
    fn the_socket_is_inherited_and_closes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"exec 2>/dev/null; { printf hello >&$2; read -r -n 1 x <&$2; printf "$x" >&$2; } & exit 0"#;
        let mut stream = start(&fake(&dir, script), None).unwrap();
        stream.set_read_timeout(Some(crate::testing::PATIENCE)).unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        stream.write_all(b"x").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"x", "and then it hangs up: nobody else has its end");
    }

    #[test]
    fn what_went_wrong_is_said_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let said = |script: &str| refusal(&fake(&dir, script));
        assert_eq!(said("echo No way >&2; exit 1"), "passt ended with exit status: 1: No way");
        assert_eq!(said("exit 3"), "passt ended with exit status: 3: it said nothing");
        assert_eq!(said("kill -9 $$"), "passt ended with signal: 9 (SIGKILL): it said nothing");
        assert_eq!(
            last_words("Failed to send 9 bytes to syslog\nWrong\nFailed to send 2 bytes to syslog\n\n"),
            "Wrong"
        );
        assert_eq!(last_words("Unknown option -x\nUsage: passt [OPTION]...\n  -d, --debug\n"), "Unknown option -x");
    }

    #[test]
    fn no_program_is_said_with_the_cure() {
        let config = UserConfig { passt: Some("/none/passt".into()), ..UserConfig::default() };
        assert!(refusal(&config).starts_with("start /none/passt: No such file"), "{}", refusal(&config));
    }

    #[test]
    fn a_port_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (port, kind) in [(tcp.local_addr().unwrap().port(), "tcp"), (udp.local_addr().unwrap().port(), "udp")] {
            for address in ["127.0.0.1:", ""] {
                let config = UserConfig { publish: vec![format!("{address}{port}:80/{kind}")], ..fake(&dir, "exit 0") };
                assert!(refusal(&config).ends_with(": another program uses it"), "{}", refusal(&config));
            }
        }
        let config = UserConfig { publish: vec!["192.0.2.77:8080:80".into()], ..fake(&dir, "exit 0") };
        assert_eq!(refusal(&config), "publish port 8080 of 192.0.2.77: this host has no such address");
    }
}
