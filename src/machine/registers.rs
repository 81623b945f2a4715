//! The register devices of a machine: serial port, power, keyboard controller, clock, debug port, pvpanic. The control thread
//! keeps them; vCPU threads use them by the bus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::bus::BusDevice;
use devices::legacy::cmos::Cmos;
use devices::legacy::console_out::ConsoleOut;
use devices::legacy::debug_port::DebugPort;
use devices::legacy::i8042::{I8042, KeyboardCounts, Unread};
use devices::legacy::pm::Pm;
use devices::legacy::pvpanic::Pvpanic;
use devices::legacy::serial::{Serial, SerialOut};
use devices::seams::{Interrupt, Notify};
use devices::state::{StateError, check};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Doing, HostError};
use crate::input::SharedSerial;
use crate::kvm::Vm;
use crate::state::RegistersState;
use crate::vcpu::Buses;
use crate::x86_64::layout;

/// The devices that are asked again once they are attached.
pub struct Registers {
    serial: Option<SerialPort>,
    power: Arc<Mutex<Pm>>,
    keyboard: Arc<Mutex<I8042>>,
    cmos: Arc<Mutex<Cmos>>,
    debug: Arc<Mutex<DebugPort>>,
}

/// The serial port and the event that says its input was read.
struct SerialPort {
    device: SharedSerial,
    drained: EventFd,
}

impl Registers {
    /// Puts them on the bus. Without `console` there is no serial port; a `keyboard` is there if it is wanted.
    pub fn attach(
        vm: &Vm,
        buses: &mut Buses,
        console: Option<ConsoleOut>,
        keyboard: bool,
        notify: &Notify,
    ) -> Result<Self, HostError> {
        let serial = console.map(|out| attach_serial(vm, buses, out, notify)).transpose()?;
        let power = Arc::new(Mutex::new(Pm::new(line(vm, layout::PM_GSI)?, notify.clone())));
        let keyboard = keyboard.then(|| line(vm, layout::KEYBOARD_GSI)).transpose()?;
        let keyboard = Arc::new(Mutex::new(I8042::new(notify.clone(), keyboard)));
        let cmos = Arc::new(Mutex::new(Cmos::new()));
        let debug = Arc::new(Mutex::new(DebugPort::new(notify.clone())));
        let mut attach = |port: u16, len, device: Arc<Mutex<dyn BusDevice + Send>>| {
            buses.io.insert(port.into(), len, device).doing(|| format!("attach a register device at port {port:#x}"))
        };
        attach(layout::PM_PORT, 8, power.clone())?;
        attach(layout::I8042_PORT, 5, keyboard.clone())?;
        attach(layout::CMOS_PORT, 2, cmos.clone())?;
        attach(layout::DEBUG_PORT, 1, debug.clone())?;
        attach(layout::PVPANIC_PORT, 1, Arc::new(Mutex::new(Pvpanic::new(notify.clone()))))?;
        Ok(Self { serial, power, keyboard, cmos, debug })
    }

    /// What the keyboard controller counts.
    pub fn keyboard_counts(&self) -> Arc<KeyboardCounts> {
        lock(&self.keyboard).tally()
    }

    /// The serial port, where there is one.
    pub fn serial(&self) -> Option<&SharedSerial> {
        self.serial.as_ref().map(|serial| &serial.device)
    }

    /// Signalled when the guest has read the console input that it was given.
    pub fn serial_drained(&self) -> Option<&EventFd> {
        self.serial.as_ref().map(|serial| &serial.drained)
    }

    /// Asks the guest to power off.
    pub fn press_power_button(&self) {
        lock(&self.power).press_power_button();
    }

    /// Presses Ctrl, Alt and Del, and the power button where the guest does not listen to a keyboard.
    pub fn press_ctrl_alt_del(&self) -> Result<(), Unread> {
        let mut keyboard = lock(&self.keyboard);
        if keyboard.is_listened_to() {
            return keyboard.press_ctrl_alt_del();
        }
        self.press_power_button();
        Ok(())
    }

    /// What is to be kept; no vCPU runs.
    pub fn save(&self) -> RegistersState {
        RegistersState {
            serial: self.serial().map(|serial| lock(serial).save()),
            cmos: lock(&self.cmos).save(),
            keyboard: lock(&self.keyboard).save(),
            power_events: lock(&self.power).save(),
            debug_port: lock(&self.debug).save(),
        }
    }

    /// Becomes what was saved; no vCPU runs.
    pub fn load(&self, state: &RegistersState) -> Result<(), StateError> {
        check(self.serial.is_some() == state.serial.is_some(), || {
            "there was a serial port and is none, or the other way round (serial_console)".to_owned()
        })?;
        if let (Some(serial), Some(saved)) = (self.serial(), &state.serial) {
            lock(serial).load(saved)?;
        }
        lock(&self.cmos).load(&state.cmos)?;
        lock(&self.keyboard).load(&state.keyboard)?;
        lock(&self.power).load(state.power_events)?;
        lock(&self.debug).load(state.debug_port);
        Ok(())
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(vm: &Vm, gsi: u32) -> Result<Interrupt, HostError> {
    let interrupt = Interrupt::new().doing(|| "create an interrupt line")?;
    vm.bind_interrupt(&interrupt, gsi)?;
    Ok(interrupt)
}

fn attach_serial(vm: &Vm, buses: &mut Buses, out: ConsoleOut, notify: &Notify) -> Result<SerialPort, HostError> {
    let doing = || "create the serial port";
    let out = SerialOut::Console(out);
    let serial = Serial::new(line(vm, layout::SERIAL_GSI)?, out, notify.clone()).doing(doing)?;
    let drained = serial.input_ready().try_clone().doing(doing)?;
    let device = Arc::new(Mutex::new(serial));
    buses.io.insert(layout::SERIAL_PORT.into(), 8, device.clone()).doing(|| "attach the serial port")?;
    Ok(SerialPort { device, drained })
}
