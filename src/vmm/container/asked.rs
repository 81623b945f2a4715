//! What the flags of `vmm run` ask for, as far as it can be known without the image. What is wrong with one is said before an
//! image is looked for, which may take minutes.

use ::container::register::check_name;
use ::container::spec::Wishes;
use ::container::volume::Volume;
use protocol::disks::DiskLimit;

use super::network::Planned;
use super::options::ContainerArgs;
use super::run::made_up_name;

/// What is asked for.
pub struct Asked {
    /// The container's name.
    pub name: String,
    /// What it shall be otherwise than its image says.
    pub wishes: Wishes,
    /// What it sees of the host.
    pub volumes: Vec<Volume>,
    /// It has users of its own.
    pub own_users: bool,
    /// How fast it may use disks.
    pub disk_limits: Vec<DiskLimit>,
    /// Its network.
    pub network: Planned,
    /// CPUs of the VM, where this container starts it.
    pub vcpu_count: u64,
}

impl Asked {
    /// Reads the flags. Looks at the host's files that they name.
    pub fn of(args: &ContainerArgs) -> Result<Self, String> {
        let told = |error: &dyn std::error::Error| error.to_string();
        let name = args.name.clone().map_or_else(made_up_name, Ok)?;
        check_name(&name).map_err(|error| told(&error))?;
        let wishes = args.wishes(&name)?;
        wishes.check().map_err(|error| told(&error))?;
        let volumes: Result<Vec<Volume>, _> = args.volume.iter().map(|text| Volume::parse(text)).collect();
        let volumes = volumes.map_err(|error| told(&error))?;
        Ok(Self {
            own_users: args.has_own_users(&volumes)?,
            disk_limits: args.disk_limits.plan(&volumes, args.storage_opt.is_some())?,
            network: args.network.plan([&name, &wishes.hostname])?,
            vcpu_count: args.vcpu_count()?,
            name,
            wishes,
            volumes,
        })
    }
}
