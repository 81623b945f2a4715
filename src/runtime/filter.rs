//! Which system calls a program may make: `linux.seccomp` of the OCI runtime specification as programs for the kernel
//! (seccomp(2)).
//!
//! libcontainer can do this with a C library, and forgets it for all processes but the first. A program of seccompiler's
//! knows two actions, so a filter is several programs: the kernel takes the strictest of their answers. They know the
//! x86-64 system calls only; a 32-bit one (which a guest's kernel may have, the tuned one has not) ends its process.
#![allow(unsafe_code)] // prctl(2)

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::str::FromStr;

use libcontainer::oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Said, LinuxSeccompArg, LinuxSeccompOperator as Operator,
};
use seccompiler::{
    BpfProgram, BpfProgramRef, SeccompAction as Action, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};
use syscalls::x86_64::Sysno;

/// By number of a system call the rules of which one must hold; no rule: it always matches.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Offsets in struct seccomp_data (linux/seccomp.h), and what stands there for x86-64 (linux/audit.h).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// The programs, in the order in which they are to be loaded.
pub fn programs(seccomp: &LinuxSeccomp) -> Result<Vec<BpfProgram>, String> {
    let usual = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    // What differs from the usual, all together, and by the action where that is more than to allow.
    let mut excepted = Rules::new();
    let mut special: Vec<(Action, Rules)> = Vec::new();
    for said in seccomp.syscalls().iter().flatten() {
        let action = action(said.action(), said.errno_ret())?;
        if action == usual {
            continue;
        }
        let conditions = conditions(said.args().as_deref().unwrap_or_default())?;
        // Names of other architectures, and of newer kernels than this program's: no such call can be allowed.
        for number in said.names().iter().filter_map(|name| Sysno::from_str(name).ok()).map(|call| call.id().into()) {
            add(&mut excepted, number, &conditions)?;
            if action == Action::Allow {
                continue;
            }
            let index = special.iter().position(|(known, _)| *known == action).unwrap_or_else(|| {
                special.push((action.clone(), Rules::new()));
                special.len() - 1
            });
            if let Some((_, rules)) = special.get_mut(index) {
                add(rules, number, &conditions)?;
            }
        }
    }
    let mut programs = Vec::new();
    for (action, rules) in special {
        programs.push(program(rules, Action::Allow, action)?);
    }
    if usual != Action::Allow {
        // The last one: it may deny the loading of more.
        let (plain, conditional) = excepted.into_iter().partition::<Rules, _>(|(_, rules)| rules.is_empty());
        let mut whole = allowed(&plain.into_keys().filter_map(|number| u32::try_from(number).ok()).collect());
        whole.append(&mut program(conditional, usual, Action::Allow)?);
        programs.push(whole);
    }
    Ok(programs)
}

/// Instructions that allow these calls, whatever their arguments, and go on behind themselves with all others.
///
/// seccompiler compares one number after the other. The kernel tries each number with a program when it is loaded, to
/// know those that are always allowed; with hundreds of comparisons that takes it 4 ms, and with these few 0.2 ms.
fn allowed(numbers: &BTreeSet<u32>) -> BpfProgram {
    // Where what holds for the numbers below does not hold any more.
    let mut parts = vec![(0, numbers.contains(&0))];
    for number in numbers {
        if parts.last().is_none_or(|(_, allowed)| !allowed) {
            parts.push((*number, true));
        }
        if let Some(next) = number.checked_add(1).filter(|next| !numbers.contains(next)) {
            parts.push((next, false));
        }
    }
    parts.dedup_by_key(|(start, _)| *start);
    let tree = search(&parts, 0);
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARCH_AT),
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        instruction(libc::BPF_JMP | libc::BPF_JA, length(&tree).saturating_add(1)),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER_AT),
    ];
    program.extend(tree);
    program
}

/// Looks the number up in `parts`; `behind` instructions stand between what this gives and the next program.
fn search(parts: &[(u32, bool)], behind: u32) -> BpfProgram {
    let (lower, upper) = parts.split_at(parts.len() / 2);
    let Some((first, allowed)) = upper.first() else { return Vec::new() };
    if lower.is_empty() {
        return vec![match allowed {
            true => instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
            false => instruction(libc::BPF_JMP | libc::BPF_JA, behind),
        }];
    }
    let above = search(upper, behind);
    let below = search(lower, behind.saturating_add(length(&above)));
    let mut program = match u8::try_from(below.len()) {
        Ok(skipped) => vec![jump(libc::BPF_JGE, *first, skipped, 0)],
        Err(_) => vec![jump(libc::BPF_JGE, *first, 0, 1), instruction(libc::BPF_JMP | libc::BPF_JA, length(&below))],
    };
    program.extend(below);
    program.extend(above);
    program
}

fn length(program: BpfProgramRef<'_>) -> u32 {
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: 0, k }
}

fn jump(compare: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..instruction(libc::BPF_JMP | compare | libc::BPF_K, k) }
}

/// Has the kernel ask `program` about every system call from now on. Takes CAP_SYS_ADMIN or `no_new_privs`.
pub fn load(program: BpfProgramRef<'_>) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which live across the call and have the layout of
    // struct sock_filter (linux/filter.h); it checks them, and writes nothing.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn add(rules: &mut Rules, number: i64, conditions: &[SeccompCondition]) -> Result<(), String> {
    match (rules.get_mut(&number), conditions.is_empty()) {
        (_, true) => {
            rules.insert(number, Vec::new());
        }
        (Some(always), false) if always.is_empty() => (),
        (_, false) => {
            let rule = SeccompRule::new(conditions.to_vec()).map_err(|error| error.to_string())?;
            rules.entry(number).or_default().push(rule);
        }
    }
    Ok(())
}

fn program(rules: Rules, otherwise: Action, matched: Action) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(|error| format!("make a seccomp filter: {error}"))
}

fn action(said: Said, number: Option<u32>) -> Result<Action, String> {
    let number = number.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match said {
        Said::ScmpActAllow => Action::Allow,
        Said::ScmpActErrno => Action::Errno(number),
        Said::ScmpActKill | Said::ScmpActKillThread => Action::KillThread,
        Said::ScmpActKillProcess => Action::KillProcess,
        Said::ScmpActLog => Action::Log,
        Said::ScmpActTrace => Action::Trace(number),
        Said::ScmpActTrap => Action::Trap,
        Said::ScmpActNotify => return Err("seccomp: nobody is there whom SCMP_ACT_NOTIFY could ask".to_owned()),
    })
}

fn conditions(args: &[LinuxSeccompArg]) -> Result<Vec<SeccompCondition>, String> {
    let condition = |arg: &LinuxSeccompArg| {
        let (operator, value) = match arg.op() {
            Operator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
            Operator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
            Operator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
            Operator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
            Operator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
            Operator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
            // The mask comes first (seccomp_rule_add(3)).
            Operator::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0)),
        };
        let index = u8::try_from(arg.index()).unwrap_or(u8::MAX);
        SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
            .map_err(|error| format!("seccomp: argument {index}: {error}"))
    };
    args.iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn of(seccomp: Value) -> Result<Vec<BpfProgram>, String> {
        programs(&serde_json::from_value(seccomp).unwrap())
    }

    /// What the kernel answers when `programs` are loaded: negated error numbers.
    fn asked(programs: Vec<BpfProgram>, calls: &'static [(i64, u64)]) -> Vec<i32> {
        let ask = |(number, argument): &(i64, u64)| {
            // SAFETY: the calls of these tests look at numbers, or fail for a bad address.
            let done = unsafe { libc::syscall(*number, *argument, 0, 0) };
            if done < 0 { -io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
        };
        // A thread's filters are its own.
        let thread = std::thread::spawn(move || {
            // SAFETY: prctl(2) with numbers only.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            for program in &programs {
                load(program).unwrap();
            }
            calls.iter().map(ask).collect()
        });
        thread.join().unwrap()
    }

    #[test]
    fn calls_get_the_answers_that_the_profile_gives() {
        const FAULT: i32 = -libc::EFAULT;
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["uname", "no_such_call", "_llseek"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [
                    {"index": 0, "value": 0xf0, "valueTwo": 0x30, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [
                    {"index": 0, "value": 1_u64 << 40, "op": "SCMP_CMP_GE"}]},
            ],
        });
        let programs = of(profile).unwrap();
        assert_eq!(programs.len(), 3); // one for each number of an error
        let calls = &[
            (libc::SYS_uname, 0),
            (libc::SYS_clone3, 0),
            (libc::SYS_dup, 0x1_0039),
            (libc::SYS_dup, 1 << 40),
            (libc::SYS_dup, 1 << 20),
            (libc::SYS_pipe, 1),
        ];
        assert_eq!(asked(programs, calls), [-libc::EPERM, -libc::ENOSYS, -7, -7, -libc::EBADF, FAULT]);
    }

    #[test]
    fn what_is_not_allowed_is_denied() {
        let denied = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "syscalls": [
            {"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": [
                "futex", "exit", "munmap", "mmap", "madvise", "rt_sigprocmask", "sigaltstack", "write", "brk", "mprotect",
                "set_robust_list", "rseq", "gettid", "prctl",
            ], "action": "SCMP_ACT_ALLOW"},
        ]});
        let calls = &[(libc::SYS_uname, 0), (libc::SYS_pipe, 1), (libc::SYS_brk, 0)];
        assert_eq!(asked(of(denied).unwrap(), calls), [-libc::ENOSYS, -95, 0]);
    }

    proptest! {
        /// As the kernel would run it (Documentation/networking/filter.rst).
        #[test]
        fn exactly_these_calls_are_allowed(numbers in prop::collection::btree_set(0_u32..600, 0..400)) {
            let program = allowed(&numbers);
            for asked in (0..700).chain([0x4000_0000, u32::MAX]) {
                let (mut at, mut value) = (0, 0);
                let ended = loop {
                    let Some(step) = program.get(at) else { break at == program.len() };
                    at += 1;
                    match u32::from(step.code) {
                        0x20 => value = if step.k == ARCH_AT { AUDIT_ARCH_X86_64 } else { asked },
                        0x15 => at += usize::from(if value == step.k { step.jt } else { step.jf }),
                        0x35 => at += usize::from(if value >= step.k { step.jt } else { step.jf }),
                        0x05 => at += step.k as usize,
                        _ => break false,
                    }
                };
                prop_assert_eq!(!ended, numbers.contains(&asked), "{}", asked);
            }
        }
    }

    #[test]
    fn the_usual_profile_names_calls_that_there_are() {
        let profile: Value = serde_json::from_str(include_str!("../../resources/seccomp/container.json")).unwrap();
        for rule in profile["syscalls"].as_array().unwrap() {
            for name in rule["names"].as_array().unwrap() {
                assert!(Sysno::from_str(name.as_str().unwrap()).is_ok(), "{name}");
            }
        }
        of(profile).unwrap();
        assert!(of(json!({"defaultAction": "SCMP_ACT_NOTIFY"})).unwrap_err().contains("SCMP_ACT_NOTIFY"));
    }
}
