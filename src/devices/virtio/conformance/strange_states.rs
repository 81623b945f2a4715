//! States as chance wants them: refused or loaded, they do no harm, and a proper driver is served afterwards.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::saving::state_of;
use super::*;
use crate::virtio::state::VirtioState;

/// The pointers (RFC 6901) to all that is no object and no list in `value`.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| leaves(value, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

fn any_leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0..64_u32).prop_map(|bit| json!(1_u64 << bit)),
        3 => (0..300_u64).prop_map(|number| json!(number)),
        2 => any::<u64>().prop_map(|number| json!(number)),
        1 => any::<u16>().prop_map(|number| json!(number)),
        2 => any::<bool>().prop_map(|yes| json!(yes)),
        1 => Just(Value::Null),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_time: 60_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn strange_states_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any_leaf()), 1..4)) {
        for device in every_device() {
            let mut changed = serde_json::to_value(state_of(&device)).unwrap();
            let mut found = Vec::new();
            leaves(&changed, "", &mut found);
            // A device whose limits are spent does not answer soon, nor does one that was told to wait.
            found.retain(|at| !at.contains("rate_limiter") && !at.ends_with("/reporting_paused"));
            for (which, leaf) in &changes {
                *changed.pointer_mut(which.get(found.as_slice()).as_str()).unwrap() = leaf.clone();
            }
            let mut rig = device.rig();
            let Ok(state) = serde_json::from_value::<VirtioState>(changed) else { continue };
            if rig.transport().load(&state).is_ok() {
                rig.resume();
                rig.kick(device.queue);
                rig.settle();
                rig.pause();
                rig.save().unwrap();
                rig.resume();
            }
            device.drive(&mut rig, V1);
            assert!(device.answers(&mut rig), "{}: a proper driver is served after all that", device.name);
        }
    }
}
