//! An AT keyboard, as far as a guest's driver wants one that types Ctrl+Alt+Del and nothing else. It belongs to its controller
//! (`i8042.rs`), under whose lock it is: vCPU threads write to it, the control thread presses its keys. Source of the commands:
//! IBM Personal System/2 Hardware Interface Technical Reference, Keyboard and Auxiliary Device Controller.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check};

/// Bytes that it keeps until somebody reads them; what comes with more of them there is lost.
const ROOM: usize = 16;

const ACKNOWLEDGE: u8 = 0xfa;
const SELF_TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
const SET_LEDS: u8 = 0xed;
const SCAN_CODE_SET: u8 = 0xf0;
const IDENTIFY: u8 = 0xf2;
const SET_RATE: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
const DISABLE: u8 = 0xf5;
const DEFAULTS: u8 = 0xf6;
const RESET: u8 = 0xff;

/// What it sends, as it is and as the controller translates it (scan code set 1).
struct Sent {
    plain: &'static [u8],
    translated: &'static [u8],
}

/// What it is: an MF2 keyboard.
const IDENTITY: Sent = Sent { plain: &[ACKNOWLEDGE, 0xab, 0x83], translated: &[ACKNOWLEDGE, 0xab, 0x41] };
/// The scan code set that it has: the second.
const SECOND_SET: Sent = Sent { plain: &[ACKNOWLEDGE, 0x02], translated: &[ACKNOWLEDGE, 0x41] };
/// The left Ctrl and Alt keys and the grey Del are pressed, and let go in the other order.
const CTRL_ALT_DEL: Sent = Sent {
    plain: &[0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14],
    translated: &[0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d],
};

/// What is kept of a keyboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyboardState {
    /// It sends its keys.
    pub scanning: bool,
    /// The command whose parameter the next byte is.
    pub command: Option<u8>,
    /// What it has sent and nobody has read: at most 16 bytes.
    pub sent: VecDeque<u8>,
}

/// The keyboard.
pub struct Keyboard {
    state: KeyboardState,
}

/// As at power-on: it sends its keys.
impl Default for Keyboard {
    fn default() -> Self {
        Self { state: KeyboardState { scanning: true, command: None, sent: VecDeque::new() } }
    }
}

impl Keyboard {
    /// What is to be kept.
    pub fn save(&self) -> KeyboardState {
        self.state.clone()
    }

    /// Becomes what was saved.
    pub fn load(&mut self, state: &KeyboardState) -> Result<(), StateError> {
        let waiting = state.sent.len();
        check(waiting <= ROOM, || format!("the keyboard keeps {ROOM} bytes, and {waiting} were saved"))?;
        self.state = state.clone();
        Ok(())
    }

    /// Whether it sends its keys.
    pub fn is_scanning(&self) -> bool {
        self.state.scanning
    }

    /// Whether something waits to be read.
    pub fn has_sent(&self) -> bool {
        !self.state.sent.is_empty()
    }

    /// The first byte that waits.
    pub fn read(&mut self) -> Option<u8> {
        self.state.sent.pop_front()
    }

    /// The guest tells it something. The controller may be translating what it answers.
    pub fn write(&mut self, byte: u8, translates: bool) {
        match self.state.command.take() {
            Some(SCAN_CODE_SET) if byte == 0 => self.send(&SECOND_SET, translates),
            Some(_) => self.acknowledge(), // it has no LEDs, one set and one rate
            None => self.obey(byte, translates),
        }
    }

    fn obey(&mut self, command: u8, translates: bool) {
        match command {
            SET_LEDS | SCAN_CODE_SET | SET_RATE => self.state.command = Some(command),
            ENABLE | DEFAULTS => self.state.scanning = true,
            DISABLE => self.state.scanning = false,
            ECHO => return self.put(&[ECHO]),
            IDENTIFY => return self.send(&IDENTITY, translates),
            RESET => {
                *self = Self::default();
                return self.put(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => {}
        }
        self.acknowledge();
    }

    /// Presses Ctrl, Alt and Del and lets them go. False, and nothing happens, where there is no room for that.
    pub fn press_ctrl_alt_del(&mut self, translates: bool) -> bool {
        let fits = self.state.sent.len().saturating_add(CTRL_ALT_DEL.plain.len()) <= ROOM;
        if fits {
            self.send(&CTRL_ALT_DEL, translates);
        }
        fits
    }

    fn acknowledge(&mut self) {
        self.put(&[ACKNOWLEDGE]);
    }

    fn send(&mut self, sent: &Sent, translates: bool) {
        self.put(if translates { sent.translated } else { sent.plain });
    }

    fn put(&mut self, bytes: &[u8]) {
        let room = ROOM.saturating_sub(self.state.sent.len());
        self.state.sent.extend(bytes.iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.read()).collect()
    }

    fn told(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| keyboard.write(*byte, false));
        all(keyboard)
    }

    #[test]
    fn answers_its_driver() {
        let mut keyboard = Keyboard::default();
        for (bytes, answers) in [
            (&[0xf2][..], &[0xfa, 0xab, 0x83][..]),
            (&[0xed, 7], &[0xfa, 0xfa]),
            (&[0xed, 0xff], &[0xfa, 0xfa]), // a parameter that looks like a command
            (&[0xf3, 0], &[0xfa, 0xfa]),
            (&[0xf0, 2], &[0xfa, 0xfa]),
            (&[0xf0, 0], &[0xfa, 0xfa, 2]),
            (&[0xee], &[0xee]),
            (&[0xf5], &[0xfa]),
            (&[0xf6], &[0xfa]),
            (&[0x01], &[0xfa]),
            (&[0xff], &[0xfa, 0xaa]),
        ] {
            assert_eq!(told(&mut keyboard, bytes), answers, "{bytes:x?}");
        }
        keyboard.write(0xf2, true);
        assert_eq!(all(&mut keyboard), [0xfa, 0xab, 0x41]);
    }

    #[test]
    fn scans_until_it_is_told_not_to() {
        let mut keyboard = Keyboard::default();
        for (byte, scans) in [(0xf5, false), (0xed, false), (0xf4, false), (0xf4, true), (0xf5, false), (0xff, true)] {
            keyboard.write(byte, false);
            assert_eq!(keyboard.is_scanning(), scans, "{byte:x}");
        }
    }

    /// The second set as a driver decodes it: what is pressed and let go.
    #[test]
    fn what_is_pressed_is_let_go() {
        for (translated, keys) in [(true, [0x1d, 0x38, 0x53]), (false, [0x14, 0x11, 0x71])] {
            let mut keyboard = Keyboard::default();
            assert!(keyboard.press_ctrl_alt_del(translated));
            let bytes = all(&mut keyboard);
            let (mut down, mut up, mut released) = (Vec::new(), Vec::new(), false);
            for byte in bytes.into_iter().filter(|byte| *byte != 0xe0) {
                match (translated, byte) {
                    (false, 0xf0) => released = true,
                    (true, 0x80..) => up.push(byte & 0x7f),
                    _ if std::mem::take(&mut released) => up.push(byte),
                    _ => down.push(byte),
                }
            }
            up.reverse();
            assert_eq!((down, up), (keys.to_vec(), keys.to_vec()));
        }
    }

    #[test]
    fn keeps_no_more_than_it_has_room_for() {
        let mut keyboard = Keyboard::default();
        assert!(keyboard.press_ctrl_alt_del(false));
        assert!(!keyboard.press_ctrl_alt_del(false), "half of it would be other keys");
        for byte in (0..=255).cycle().take(10_000) {
            keyboard.write(byte, byte & 1 == 0);
            assert!(keyboard.save().sent.len() <= ROOM);
        }
        keyboard.write(0xff, false);
        assert_eq!(keyboard.save().sent, [0xfa, 0xaa], "a reset forgets what was sent");
    }

    #[test]
    fn a_state_with_more_than_there_is_room_for_is_refused() {
        let mut keyboard = Keyboard::default();
        keyboard.write(0xed, false);
        keyboard.press_ctrl_alt_del(true);
        let state = keyboard.save();
        let mut other = Keyboard::default();
        other.load(&state).unwrap();
        assert_eq!(other.save(), state);
        let many = KeyboardState { sent: [0; ROOM + 1].into(), ..state };
        let refused = other.load(&many).unwrap_err().to_string();
        assert_eq!(refused, "the keyboard keeps 16 bytes, and 17 were saved");
    }
}
