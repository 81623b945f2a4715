//! Guest tests: real kernels under `vmm`, seen from where a user sits.
//!
//! They need /dev/kvm with hardware assistance, or the lab that has it: `tools/test guest` sees to both, and to the
//! guests of tools/guest. Nothing skips; what cannot run fails and says what is missing. No test asserts a time; every
//! wait has an end, and fails there with what the guest printed last.

mod api;
mod balloon;
mod boot;
mod claims;
mod client;
mod compare;
mod console;
mod container;
mod container_disks;
mod container_flags;
mod container_kernel;
mod container_layers;
mod container_life;
mod container_network;
mod container_ports;
mod container_shares;
mod container_signals;
mod container_sources;
mod container_tap;
mod container_templates;
mod container_tenants;
mod container_verbs;
mod container_words;
mod cpu_template;
mod cpus_memory;
mod disk;
mod disk_kill;
mod disk_options;
mod document;
mod ends;
mod gdb;
mod hostile_clients;
mod iperf3;
mod layers;
mod lies;
mod login;
mod metrics;
mod mmds;
mod names;
mod net;
mod pause;
mod pmem;
mod rng;
mod saved;
mod screen;
#[path = "../image/server.rs"]
mod server;
mod share;
mod tap;
mod terminal;
mod tour;
mod user_net;
mod uso;
mod vm;
mod vsock;
