//! Where it was written what the guest finds wrong: with a flag, or in the image's configuration.

use ::container::document::RunConfig;
use protocol::message::{Failure, FailureKind};

use super::options::ContainerArgs;

/// Of a container's user, working directory and program.
#[derive(Debug, Default)]
pub struct Places {
    user: String,
    workdir: String,
    /// Nothing where the command line says it.
    program: Option<String>,
}

impl Places {
    /// Those of this container.
    pub fn of(args: &ContainerArgs, image: &RunConfig) -> Self {
        let of_image = |key: &str| format!("{}: the {key} of its configuration", args.image);
        let flag = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
        let program = match (&args.entrypoint, &image.entrypoint) {
            (Some(program), _) if !program.is_empty() => flag("--entrypoint", &args.entrypoint),
            (None, Some(words)) if !words.is_empty() => Some(of_image("Entrypoint")),
            _ if args.command.is_empty() => Some(of_image("Cmd")),
            _ => None,
        };
        Self {
            user: flag("--user", &args.user).unwrap_or_else(|| of_image("User")),
            workdir: flag("--workdir", &args.workdir).unwrap_or_else(|| of_image("WorkingDir")),
            program,
        }
    }

    /// What a failure says, behind its place.
    pub fn tell(&self, failure: &Failure) -> String {
        let place = match failure.kind {
            FailureKind::Engine => None,
            FailureKind::User => Some(&self.user),
            FailureKind::WorkingDirectory => Some(&self.workdir),
            FailureKind::NotExecutable | FailureKind::NotFound => self.program.as_ref(),
        };
        place.map_or_else(|| failure.why.clone(), |place| format!("{place}: {}", failure.why))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::args;
    use super::*;

    #[test]
    fn what_is_wrong_has_a_place() {
        let image = RunConfig { entrypoint: Some(vec!["/entry".to_owned()]), ..RunConfig::default() };
        let told = |line: &str, image: &RunConfig, kind| {
            Places::of(&args(line), image).tell(&Failure { kind, why: "no".to_owned() })
        };
        for (line, kind, wanted) in [
            ("img", FailureKind::User, "img: the User of its configuration: no"),
            ("--user joe img", FailureKind::User, "--user joe: no"),
            ("img", FailureKind::WorkingDirectory, "img: the WorkingDir of its configuration: no"),
            ("--workdir /x img", FailureKind::WorkingDirectory, "--workdir /x: no"),
            ("img", FailureKind::NotFound, "img: the Entrypoint of its configuration: no"),
            ("img serve", FailureKind::NotExecutable, "img: the Entrypoint of its configuration: no"),
            ("--entrypoint sh img", FailureKind::NotFound, "--entrypoint sh: no"),
            ("--entrypoint= img serve", FailureKind::NotFound, "no"),
            ("img", FailureKind::Engine, "no"),
        ] {
            assert_eq!(told(line, &image, kind), wanted, "{line}");
        }
        let plain = RunConfig::default();
        assert_eq!(told("img", &plain, FailureKind::NotFound), "img: the Cmd of its configuration: no");
        assert_eq!(told("img serve", &plain, FailureKind::NotFound), "no");
    }
}
