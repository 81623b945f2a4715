//! `--net`: `key=value` pairs between commas. Pure.

use serde_json::{Map, Value, json};

/// Reads `tap=NAME|fd=N|user[,publish=PORTS][,address=ADDRESS][,passt=PROGRAM][,mac=ADDRESS][,mtu=N][,queue-pairs=N][,vhost][,id=NAME]` into an element of `network-interfaces`.
pub fn parse(text: &str) -> Result<Value, String> {
    const KNOWN: &str = "tap=NAME, fd=N, user, publish=[IP:]HOSTPORT:GUESTPORT[/tcp|/udp], address=IP/BITS, passt=PROGRAM, mac=ADDRESS, mtu=N, queue-pairs=N, vhost and id=NAME are known";
    let (mut net, mut publish) = (Map::new(), Vec::new());
    for option in text.split(',') {
        if let Some(ports) = option.strip_prefix("publish=").filter(|ports| !ports.is_empty()) {
            publish.push(ports);
            continue;
        }
        let (key, value) = match option.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => ("host_dev_name", json!(name)),
            Some(("id", name)) if !name.is_empty() => ("iface_id", json!(name)),
            Some(("mac", address)) if !address.is_empty() => ("guest_mac", json!(address)),
            Some(("fd", number)) if number.parse::<u16>().is_ok() => {
                ("host_fd", json!(number.parse::<u16>().unwrap_or(0)))
            }
            Some(("mtu", number)) if number.parse::<u16>().is_ok() => {
                ("mtu", json!(number.parse::<u16>().unwrap_or(0)))
            }
            Some(("queue-pairs", number)) if number.parse::<u16>().is_ok() => {
                ("queue_pairs", json!(number.parse::<u16>().unwrap_or(0)))
            }
            Some(("address", address)) if !address.is_empty() => ("address", json!(address)),
            Some(("passt", program)) if !program.is_empty() => ("passt", json!(program)),
            None if option == "user" => ("user", json!({})),
            None if option == "vhost" => ("vhost", json!(true)),
            _ => return Err(format!("unknown option `{option}`; {KNOWN}")),
        };
        if net.insert(key.to_owned(), value).is_some() {
            return Err(format!("`{option}` comes twice"));
        }
    }
    let own: Vec<_> = ["address", "passt"].iter().filter_map(|key| Some((*key, net.remove(*key)?))).collect();
    if let Some(user) = net.get_mut("user").and_then(Value::as_object_mut) {
        user.extend((!publish.is_empty()).then(|| ("publish".to_owned(), json!(publish))));
        user.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    } else if !own.is_empty() || !publish.is_empty() {
        return Err("publish=, address= and passt= belong to user".into());
    }
    if !["host_dev_name", "host_fd", "user"].iter().any(|key| net.contains_key(*key)) {
        return Err("tap=NAME, fd=N or user is expected".into());
    }
    Ok(Value::Object(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_keys() {
        assert_eq!(parse("tap=tap0").unwrap(), json!({ "host_dev_name": "tap0" }));
        assert_eq!(parse("tap=a,queue-pairs=4").unwrap(), json!({ "host_dev_name": "a", "queue_pairs": 4 }));
        assert_eq!(parse("user").unwrap(), json!({ "user": {} }));
        assert_eq!(
            parse("mac=02:00:00:00:00:01,publish=80:80,user,publish=[::1]:53:53/udp,address=a,passt=/x").unwrap(),
            json!({ "guest_mac": "02:00:00:00:00:01",
                "user": { "publish": ["80:80", "[::1]:53:53/udp"], "address": "a", "passt": "/x" } })
        );
        assert_eq!(parse("tap=a,vhost").unwrap(), json!({ "host_dev_name": "a", "vhost": true }));
        assert_eq!(
            parse("fd=3,mac=02:00:00:00:00:01,mtu=9000,id=lan").unwrap(),
            json!({ "host_fd": 3, "guest_mac": "02:00:00:00:00:01", "mtu": 9000, "iface_id": "lan" })
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "``"),
            ("tap0", "`tap0`"),
            ("tap=", "`tap=`"),
            ("mac=x", "tap=NAME"),
            ("user=x", "`user=x`"),
            ("user,user", "`user` comes twice"),
            ("user,publish=", "`publish=`"),
            ("user,passt=", "`passt=`"),
            ("tap=a,publish=80:80", "belong to user"),
            ("tap=a,passt=/x", "belong to user"),
            ("tap=a,address=10.0.2.15/24", "belong to user"),
            ("tap=a,tap=b", "`tap=b`"),
            ("fd=x", "`fd=x`"),
            ("tap=a,vhost=x", "`vhost=x`"),
            ("tap=a,queue-pairs=", "`queue-pairs=`"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
