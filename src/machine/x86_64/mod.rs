//! What is particular to x86-64: the address map, CPU identification, registers at entry, ACPI tables.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod msr;
pub mod regs;
pub mod template;
