//! What is commonly said of virtual machines and containers, held against what was measured. Pure.

use crate::measure::{Column, Measured, Metric};
use crate::report::{counted, own_namespaces, text};
use crate::statistics::{Verdict, median};
use crate::world::World;

/// One sentence of the textbooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is said.
    pub said: &'static str,
    /// What was measured; nothing where a world is missing.
    pub measured: String,
    /// What becomes of it.
    pub verdict: String,
}

/// What was measured, and the verdict.
type Found = Option<(String, String)>;
/// A sentence, and what holds it against the numbers.
type Check = (&'static str, fn(&View) -> Found);

/// All of them.
pub fn claims(measured: &Measured) -> Vec<Claim> {
    let all: [Check; 7] = [
        ("A virtual machine takes minutes to start, a container milliseconds.", start),
        ("A virtual machine is gigabytes on disk, a container megabytes.", size),
        ("A virtual machine computes more slowly than its host.", arithmetic),
        ("A container runs at the speed of a process, a virtual machine does not: system calls and processes.", system),
        ("A host carries a few virtual machines, or hundreds of containers.", density),
        ("Containers share the host's kernel; a virtual machine has one of its own.", kernels),
        ("One has either the container's ways or the virtual machine's wall.", both),
    ];
    let view = View { measured };
    let claim = |(said, check): Check| {
        let (measured, verdict) = check(&view).unwrap_or_else(|| {
            let why = "nothing can be said: too few rounds, or a world that it is about was not measured";
            (String::new(), why.to_owned())
        });
        Claim { said, measured, verdict }
    };
    all.map(claim).into()
}

struct View<'a> {
    measured: &'a Measured,
}

impl View<'_> {
    fn column(&self, world: World) -> Option<&Column> {
        self.measured.columns.iter().find(|column| column.world == world && !column.again)
    }

    fn median(&self, world: World, metric: Metric) -> Option<f64> {
        median(self.column(world)?.of(metric))
    }

    /// World and number, for people.
    fn words(&self, world: World, metric: Metric) -> Option<String> {
        Some(format!("{} {}", world.name(), text(metric, self.median(world, metric)?)))
    }

    fn list(&self, metric: Metric) -> String {
        World::ALL.iter().filter_map(|world| self.words(*world, metric)).collect::<Vec<_>>().join(", ")
    }

    /// What a world costs beside a plain process, as a word; none where the process was not measured.
    fn beside_process(&self, world: World, metric: Metric) -> Option<String> {
        let [base, again, ..] = self.measured.columns.as_slice() else { return None };
        if base.world != World::Process {
            return None;
        }
        let verdict = Verdict::of(base.of(metric), again.of(metric), self.column(world)?.of(metric))?;
        Some(if verdict.differs() { format!("×{:.2}", verdict.ratio) } else { "no more than noise".to_owned() })
    }

    fn files_mib(&self, world: World) -> Option<f64> {
        let files = &self.column(world)?.files;
        Some(files.iter().map(|(_, bytes)| *bytes).sum::<u64>() as f64 / f64::from(1 << 20))
    }
}

fn start(view: &View) -> Found {
    let (vm, container) = (view.median(World::Vm, Metric::StartMs)?, view.median(World::Container, Metric::StartMs)?);
    let verdict = match (vm >= 60_000.0, container < 1_000.0) {
        (true, true) => "holds".to_owned(),
        (false, true) => format!(
            "the container's half holds; a microVM breaks the other: {}, {:.1} times the container's start",
            text(Metric::StartMs, vm),
            vm / container
        ),
        _ => "does not hold here: the container takes a second or more, too".to_owned(),
    };
    Some((format!("start to first output: {}", view.list(Metric::StartMs)), verdict))
}

fn size(view: &View) -> Found {
    let (vm, container) = (view.files_mib(World::Vm)?, view.files_mib(World::Container)?);
    let instance = view.median(World::Vm, Metric::FilesKib)?;
    let measured = format!(
        "files once: container {container:.1} MiB, vm {vm:.1} MiB (its kernel, the monitor and an init more); of each further \
         instance: {}",
        view.list(Metric::FilesKib)
    );
    let verdict = match vm >= 1024.0 || instance >= 1024.0 * 1024.0 {
        true => "holds: this virtual machine needs a gigabyte".to_owned(),
        false => "a microVM breaks it: its image is the container's own, and a second VM shares it".to_owned(),
    };
    Some((measured, verdict))
}

fn arithmetic(view: &View) -> Found {
    let beside = view.beside_process(World::Vm, Metric::CpuMs)?;
    let verdict = if beside == "no more than noise" {
        "does not hold for arithmetic: the processor runs it in the guest as it does outside".to_owned()
    } else {
        format!("{beside} of the process here")
    };
    Some((format!("CPU loop: {}", view.list(Metric::CpuMs)), verdict))
}

fn system(view: &View) -> Found {
    let beside = |world: World| {
        let part = |name: &str, metric: Metric| Some(format!("{name} {}", view.beside_process(world, metric)?));
        Some([part("getpid", Metric::GetpidMs)?, part("fork+exec", Metric::ForkExecMs)?].join(", "))
    };
    let measured = format!(
        "{}: {}; {}: {}",
        counted(Metric::GetpidMs, "getpid", view.measured.percent),
        view.list(Metric::GetpidMs),
        counted(Metric::ForkExecMs, "fork+exec", view.measured.percent),
        view.list(Metric::ForkExecMs)
    );
    let verdict = format!("beside the process: container {}; vm {}", beside(World::Container)?, beside(World::Vm)?);
    Some((measured, verdict))
}

fn density(view: &View) -> Found {
    let each = |world: World| {
        let kib = view.median(world, Metric::SecondKib)?.max(1.0);
        Some((kib, 1024.0 * 1024.0 / kib))
    };
    let ((vm, vms), (container, containers)) = (each(World::Vm)?, each(World::Container)?);
    let measured = format!("memory that a second instance adds: {}", view.list(Metric::SecondKib));
    let verdict = format!(
        "in proportion it holds ({:.1} times the memory), in numbers a microVM breaks it: a GiB carries {vms:.0} of them, idle, and \
         {containers:.0} containers",
        vm / container
    );
    let verdict = if vms < 4.0 { "holds".to_owned() } else { verdict };
    Some((measured, verdict))
}

fn kernels(view: &View) -> Found {
    let host = &view.measured.host;
    let (vm, container) = (&view.column(World::Vm)?.facts, &view.column(World::Container)?.facts);
    let holds = container.boot_id == host.boot_id && vm.boot_id != host.boot_id;
    let measured = format!("kernel: host {}, container {}, vm {}", host.kernel, container.kernel, vm.kernel);
    let verdict = match holds {
        true => "holds: by its boot identity the container runs on the host's kernel, the VM on its own",
        false => "does not hold: look at the boot identities",
    };
    Some((measured, verdict.to_owned()))
}

fn both(view: &View) -> Found {
    let (host, inner) = (&view.measured.host, &view.column(World::VmContainer)?.facts);
    let measured = format!(
        "container in a microVM: kernel {}, process number {}, processes that it sees: {}, namespaces of its own: {}",
        inner.kernel,
        inner.pid,
        inner.processes,
        own_namespaces(inner, host)
    );
    let price = view.median(World::VmContainer, Metric::StartMs)? - view.median(World::Vm, Metric::StartMs)?;
    let verdict = match inner.boot_id != host.boot_id && inner.pid == 1 {
        true => format!("broken: both walls at once; the inner one costs {price:.0} ms of start"),
        false => "holds here".to_owned(),
    };
    Some((measured, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::measured;

    fn verdict(measured: &Measured, number: usize) -> String {
        claims(measured)[number].verdict.clone()
    }

    #[test]
    fn claims_follow_the_numbers() {
        let usual = measured();
        assert!(verdict(&usual, 0).contains("a microVM breaks the other: 91.5 ms"), "{}", verdict(&usual, 0));
        assert!(verdict(&usual, 1).starts_with("a microVM breaks it"));
        assert!(verdict(&usual, 2).starts_with("does not hold for arithmetic"));
        assert!(verdict(&usual, 4).contains("a GiB carries 512 of them"), "{}", verdict(&usual, 4));
        assert!(verdict(&usual, 5).starts_with("holds"));
        assert!(verdict(&usual, 6).contains("costs 100 ms"), "{}", verdict(&usual, 6));

        let mut slow = measured();
        slow.columns[3].samples.insert(Metric::StartMs, vec![90_000.0; 4]);
        slow.columns[3].samples.insert(Metric::SecondKib, vec![500.0 * 1024.0; 4]);
        slow.columns[3].samples.insert(Metric::CpuMs, vec![200.0; 4]);
        slow.columns[3].files[0].1 = 2 << 30;
        assert_eq!((verdict(&slow, 0), verdict(&slow, 4)), ("holds".to_owned(), "holds".to_owned()));
        assert!(verdict(&slow, 1).starts_with("holds"));
        assert_eq!(verdict(&slow, 2), "×1.99 of the process here");
        let mut shared = measured();
        shared.columns[3].facts.boot_id = "host".to_owned();
        assert!(verdict(&shared, 5).starts_with("does not hold"));
    }

    #[test]
    fn nothing_is_said_of_worlds_that_are_missing() {
        let mut measured = measured();
        measured.columns.retain(|column| column.world == World::Process);
        assert!(claims(&measured).iter().all(|claim| claim.verdict.starts_with("nothing can be said")));
    }
}
