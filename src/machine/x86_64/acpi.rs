//! ACPI tables of a hardware-reduced machine: RSDP, XSDT, FADT, MADT, DSDT.
//!
//! Everything that a stock kernel must find is in the DSDT: every virtio-mmio device (`LNRO0005`), the serial port, the
//! keyboard, the CMOS clock, the power button behind a Generic Event Device, pvpanic. Pure: a plan in, bytes out. Source: ACPI 6.4.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::memory::{Bytes, GuestAddress, GuestRam};

use super::layout;
use crate::error::{Doing, HostError};

const OEM_ID: [u8; 6] = *b"VMM   ";
const OEM_TABLE_ID: [u8; 8] = *b"VMMMACHN";
/// SLP_TYP of the S5 state, as the power management device understands it.
const S5_SLEEP_TYPE: u8 = 5;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// vCPUs; their APIC ids count from 0.
    pub cpus: u32,
    /// The serial port exists.
    pub serial: bool,
    /// There is a keyboard.
    pub keyboard: bool,
    /// Register window and GSI of every virtio-mmio device.
    pub virtio: Vec<(u32, u32)>,
}

/// Writes all tables at [`layout::ACPI`] and returns the address of the RSDP.
pub fn write(ram: &GuestRam, hardware: &Hardware) -> Result<u64, HostError> {
    let rsdp = layout::ACPI;
    let mut next = rsdp + Rsdp::len() as u64;
    let mut put = |bytes: &[u8]| {
        let at = next.next_multiple_of(16);
        next = at + bytes.len() as u64;
        if next > layout::RESET_VECTOR {
            return Err(HostError::new("write ACPI tables", "too many vCPUs or devices for the space below 1 MiB"));
        }
        ram.write_slice(bytes, GuestAddress(at)).doing(|| "write ACPI tables").map(|()| at)
    };
    let dsdt = put(dsdt(hardware).as_slice())?;
    let fadt = put(&bytes(&fadt(dsdt, hardware.keyboard).finalize()))?;
    let madt = put(madt(hardware.cpus).as_slice())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes(&xsdt))?;
    ram.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(rsdp)).doing(|| "write ACPI tables")?;
    Ok(rsdp)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

/// FADT (5.2.9): hardware-reduced, sleep and reset registers, no VGA, and no keyboard controller to probe unless there is a
/// keyboard.
fn fadt(dsdt: u64, keyboard: bool) -> FADTBuilder {
    const HAS_8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | if keyboard { HAS_8042 } else { 0 }).into();
    fadt.sleep_control_reg = port(layout::PM_PORT);
    fadt.sleep_status_reg = port(layout::PM_PORT + 1);
    fadt.reset_reg = port(layout::PM_PORT + 2);
    fadt.reset_value = 1;
    fadt
}

/// MADT (5.2.12). APIC ids from 255 up need the x2APIC form.
fn madt(cpus: u32) -> Sdt {
    const ENABLED: u32 = 1;
    const LINT1: u8 = 1;
    let mut entries = Vec::new();
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(id) if id < 255 => {
                entries.extend([0, 8, id, id]);
                entries.extend(ENABLED.to_le_bytes());
            }
            _ => {
                entries.extend([9, 16, 0, 0]);
                entries.extend([id.to_le_bytes(), ENABLED.to_le_bytes(), id.to_le_bytes()].concat());
            }
        }
    }
    let ioapic = u32::try_from(layout::IOAPIC).unwrap_or_default();
    entries.extend([1, 12, 0, 0]);
    entries.extend([ioapic.to_le_bytes(), 0u32.to_le_bytes()].concat());
    entries.extend([4, 6, 0xff, 0, 0, LINT1]); // NMI on every processor's LINT1

    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE_ID, 1);
    let lapic = u32::try_from(layout::LAPIC).unwrap_or_default();
    let mut body = lapic.to_le_bytes().to_vec();
    body.extend(0u32.to_le_bytes()); // no 8259
    body.extend(entries);
    madt.append_slice(&body);
    madt
}

fn dsdt(hardware: &Hardware) -> Sdt {
    let mut aml = Vec::new();
    if hardware.serial {
        serial(&mut aml);
    }
    if hardware.keyboard {
        keyboard(&mut aml);
    }
    clock(&mut aml);
    power_button(&mut aml);
    pvpanic(&mut aml);
    for (number, &(base, gsi)) in hardware.virtio.iter().enumerate() {
        virtio(&mut aml, number, base, gsi);
    }
    let mut body = Scope::raw(Path::new("_SB_"), aml);
    Name::new(Path::new("_S5_"), &Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, 1);
    dsdt.append_slice(&body);
    dsdt
}

fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial(aml: &mut Vec<u8>) {
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &edge(layout::SERIAL_GSI),
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn keyboard(aml: &mut Vec<u8>) {
    let port = |port| IO::new(port, port, 1, 1);
    Device::new(
        Path::new("KBD_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0303")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &port(layout::I8042_PORT),
                    &port(layout::I8042_PORT + layout::I8042_COMMAND),
                    &edge(layout::KEYBOARD_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn clock(aml: &mut Vec<u8>) {
    Device::new(
        Path::new("RTC_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(layout::CMOS_PORT, layout::CMOS_PORT, 1, 2)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The power button, and the Generic Event Device (5.6.9) whose interrupt says that it was pressed.
fn power_button(aml: &mut Vec<u8>) {
    const BUTTON_PRESSED: u8 = 0x80;
    Device::new(
        Path::new("PWRB"),
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")), &Name::new(Path::new("_UID"), &ZERO)],
    )
    .to_aml_bytes(aml);
    let pending = Local(0);
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&edge(layout::PM_GSI)])),
            &OpRegion::new(Path::new("EREG"), OpRegionSpace::SystemIO, &(layout::PM_PORT + 3), &1u8),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &Store::new(&pending, &Path::new("ESEL")),
                    &And::new(&pending, &pending, &ONE),
                    &If::new(&Equal::new(&pending, &ONE), vec![&Notify::new(&Path::new("PWRB"), &BUTTON_PRESSED)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// pvpanic as QEMU's specification (docs/specs/pvpanic) announces it.
fn pvpanic(aml: &mut Vec<u8>) {
    const PRESENT_ENABLED_SHOWN_WORKING: u8 = 0xf;
    Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_STA"), &PRESENT_ENABLED_SHOWN_WORKING),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn virtio(aml: &mut Vec<u8>, number: usize, base: u32, gsi: u32) {
    let length = u32::try_from(layout::VIRTIO_MMIO_LEN).unwrap_or_default();
    let uid = u8::try_from(number).unwrap_or_default();
    let interrupt = Interrupt::new(true, true, false, true, gsi);
    Device::new(
        Path::new(&format!("VR{number:02X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, base, length), &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Ram, test_ram};

    fn ram() -> Ram {
        test_ram(2 << 20)
    }

    fn small() -> Hardware {
        Hardware { cpus: 1, serial: true, keyboard: false, virtio: Vec::new() }
    }

    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let len: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let mapped = ram();
        let ram = mapped.guest();
        let hardware =
            Hardware { cpus: 300, virtio: (0..64).map(|i| (0xd000_0000 + i * 4096, 16)).collect(), ..small() };
        let rsdp = write(ram, &hardware).unwrap();
        let mut root = [0; 36];
        ram.read_slice(&mut root, GuestAddress(rsdp)).unwrap();
        assert_eq!((&root[..8], sum(&root[..20]), sum(&root)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(ram, u64_at(&root, 24));
        let fadt = table(ram, u64_at(&xsdt, 36));
        let madt = table(ram, u64_at(&xsdt, 44));
        let dsdt = table(ram, u64_at(&fadt, 140));
        for (bytes, name) in [(&xsdt, b"XSDT"), (&fadt, b"FACP"), (&madt, b"APIC"), (&dsdt, b"DSDT")] {
            assert_eq!((&bytes[..4], sum(bytes)), (&name[..], 0));
        }
        assert_eq!(dsdt.windows(8).filter(|name| name == b"LNRO0005").count(), 64);
    }

    #[test]
    fn madt_uses_x2apic_entries_above_254() {
        let madt = madt(257);
        let mut entries = &madt.as_slice()[44..];
        let mut kinds = std::collections::BTreeMap::new();
        while let [kind, len, ..] = *entries {
            *kinds.entry(kind).or_insert(0) += 1;
            entries = &entries[len as usize..];
        }
        assert_eq!(kinds, [(0, 255), (1, 1), (4, 1), (9, 2)].into());
    }

    #[test]
    fn only_what_is_there_is_announced() {
        let announced = |hardware: &Hardware| {
            let dsdt = dsdt(hardware);
            [b"COM1", b"KBD_", b"PWRB"].map(|device| dsdt.as_slice().windows(4).any(|name| name == device))
        };
        assert_eq!(announced(&small()), [true, false, true]);
        assert_eq!(announced(&Hardware { serial: false, keyboard: true, ..small() }), [false, true, true]);
    }

    /// Linux probes a keyboard controller only where IAPC_BOOT_ARCH, at byte 109, has bit 1.
    #[test]
    fn a_keyboard_controller_is_denied_where_there_is_no_keyboard() {
        let flags = |keyboard| bytes(&fadt(0, keyboard).finalize())[109];
        assert_eq!([false, true].map(flags), [1 << 2, 1 << 1 | 1 << 2]);
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let hardware = Hardware { cpus: 9000, ..small() };
        assert!(write(ram().guest(), &hardware).is_err());
    }
}
