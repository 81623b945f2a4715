//! What the log writes, and where nobody reads it.

use serde_json::{Value, json};

use super::*;

/// What is written with this configuration, the log going to a file.
fn written(config: Value, say: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut config: LoggerConfig = serde_json::from_value(config).unwrap();
    config.log_path = Some(file.path().to_owned());
    let logger = Logger::new(Some("a"), &Arc::default(), Wanted::new(Some(&config)).unwrap());
    tracing::subscriber::with_default(logger, say);
    std::fs::read_to_string(file.path()).unwrap()
}

#[test]
fn lines_go_to_the_file_and_stay_lines() {
    let text = written(json!({ "show_level": true }), || {
        tracing::warn!(device = "rootfs", "two\nlines\x1b[31m");
        tracing::debug!("not this");
    });
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains(":WARN] two lines [31m device=\"rootfs\""), "{text}");
}

#[test]
fn a_line_says_where_it_comes_from() {
    let plain = written(json!({}), || tracing::warn!("x"));
    assert!(plain.ends_with("] x\n") && !plain.contains("WARN") && !plain.contains(".rs:"), "{plain}");
    let text = written(json!({ "show_log_origin": true }), || tracing::warn!("x"));
    assert!(text.contains(&format!(":{}:", file!())), "{text}");
}

#[test]
fn severities_are_those_of_the_module() {
    let levels = json!({ "devices::virtio::net": "Trace", "machine": "Off" });
    let say = || {
        tracing::trace!(target: "devices::virtio::net::tap", "one");
        tracing::trace!(target: "devices::virtio::block", "not this");
        tracing::error!(target: "machine::control", "not this");
        tracing::warn!(target: "vmm", "two");
        tracing::info!(target: "vmm", "not this");
    };
    let text = written(json!({ "level": "Warning", "levels": levels }), say);
    assert_eq!((text.lines().count(), text.contains("not this")), (2, false), "{text}");
    let text = written(json!({ "level": "Trace", "module": "devices::v" }), say);
    assert_eq!((text.lines().count(), text.contains("one"), text.contains("two")), (2, true, false), "{text}");
}

#[test]
fn lines_of_json_have_each_field() {
    let text = written(json!({ "format": "json", "show_log_origin": true }), || {
        tracing::warn!(device = "rootfs", slot = 3, bad = true, why = ?Some(1), "two\n\"lines\"");
    });
    let line: Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
    assert_eq!(line["message"], "two\n\"lines\"");
    assert_eq!(line["fields"], json!({ "device": "rootfs", "slot": 3, "bad": true, "why": "Some(1)" }));
    assert_eq!((&line["id"], &line["level"], &line["file"]), (&json!("a"), &json!("WARN"), &json!(file!())));
    assert!(line["line"].is_u64() && line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    assert_eq!(line["module"], module_path!());
    assert_eq!(line["thread"], std::thread::current().name().unwrap());
}

/// Whatever is said, a line is one that a pipe takes whole.
#[test]
fn long_lines_are_cut() {
    for format in ["text", "json"] {
        for long in ["x".repeat(10_000), "\u{1}".repeat(10_000), "€".repeat(5_000)] {
            let text = written(json!({ "format": format }), || tracing::warn!(a = 1, b = long, c = 2, "{long}"));
            assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
            assert!(text.len() <= line::LINE_MAX && text.len() > 1000, "{} bytes", text.len());
            if format == "json" {
                let line: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(line["fields"]["a"], 1, "{line}");
            }
        }
    }
}

/// The place of a message notes whether it is listened to.
#[test]
fn what_is_asked_for_changes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| Some(folder.path().join(name));
    let logger = Logger::new(None, &Arc::default(), Wanted::new(None).unwrap());
    let config = |name: &str, level| LoggerConfig { log_path: path(name), level, ..Default::default() };
    let say = |text: &str| tracing::debug!("{text}");
    tracing::subscriber::with_default(logger.clone(), || {
        logger.set(Some(&config("one", LogLevel::Info))).unwrap();
        say("a");
        logger.set(Some(&config("two", LogLevel::Debug))).unwrap();
        say("b");
        let nowhere = config("no/where", LogLevel::Debug);
        assert!(logger.set(Some(&nowhere)).unwrap_err().starts_with("logger.log_path: open "));
        say("c");
        std::fs::rename(path("two").unwrap(), path("old").unwrap()).unwrap();
        logger.set(Some(&config("two", LogLevel::Debug))).unwrap();
        say("d");
        logger.set(Some(&config("two", LogLevel::Off))).unwrap();
        say("e");
    });
    let said = |name: &str| {
        let text = std::fs::read_to_string(path(name).unwrap()).unwrap();
        text.lines().map(|line| line.chars().last().unwrap()).collect::<String>()
    };
    assert_eq!([said("one"), said("old"), said("two")], ["", "bc", "d"]);
}

/// Neither before somebody reads a FIFO, nor when it is full, nor when the reader is gone.
#[test]
fn nobody_has_to_read_a_fifo() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(status.success());
    let config = LoggerConfig { log_path: Some(path.clone()), ..Default::default() };
    let reports = Arc::<Reports>::default();
    let lost = || reports.missed_log_count.load(Ordering::Relaxed);
    let logger = Logger::new(None, &reports, Wanted::new(Some(&config)).unwrap());
    let keep = logger.clone();
    let long = "x".repeat(2000);
    let mut said = 0;
    tracing::subscriber::with_default(logger, || {
        while lost() < 3 {
            assert!(said < 10_000, "the FIFO is never full");
            tracing::warn!("{long}");
            said += 1;
        }
    });
    // What nobody has read goes with the last descriptor.
    let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    drop(keep); // the writer is gone, so the text has an end
    let mut text = Vec::new();
    io::Read::read_to_end(&mut reader, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count() as u64, said - lost());
    assert!(text.lines().all(|line| line.ends_with(&long)), "lines are whole or not there");
    assert!(open_output(folder.path()).is_err());
}
