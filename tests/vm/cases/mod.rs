//! The cases. To add one: write `async fn name(machines: &mut Machines) -> Result<Outcome>` in a
//! file here, and give it a line in [`CASES`].
//!
//! All machines run and all links are up when a case begins; what it froze, cut or killed is put
//! right after it. What else it made on the machines it should take away. An error fails it.

mod conformance;
mod drills;
mod kernel_backend;
mod kernel_initiator;
mod kubernetes;
mod lease;
mod machines;
mod nvmet;
mod ublk;
mod user_initiator;

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machines::Machines;
use crate::options::Options;
use crate::report::Outcome;

/// What a case's function becomes.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// One case.
pub struct Case {
    pub name: &'static str,
    pub form: Form,
    /// The longest it may take, under emulation on a busy machine.
    pub within: Duration,
    /// Takes the case's name, too.
    pub run: for<'a> fn(&'a mut Machines, &'static str) -> Running<'a>,
}

/// When a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Always.
    Short,
    /// With `--all`, or by its name.
    Long,
}

/// A drill with the set-up of its members, and their machine's boot after it.
const DRILL_WITHIN: Duration = Duration::from_secs(900);

/// The drill of this name.
const fn drill(name: &'static str, form: Form) -> Case {
    Case {
        name,
        form,
        within: DRILL_WITHIN,
        run: |machines, name| Box::pin(drills::drill(machines, name)),
    }
}

/// All cases, in the order in which they are run.
const CASES: &[Case] = &[
    Case {
        name: "machines",
        form: Form::Long,
        within: Duration::from_secs(180),
        run: |machines, _| Box::pin(machines::faults(machines)),
    },
    Case {
        name: "nvmet-reservations",
        form: Form::Short,
        within: Duration::from_secs(180),
        run: |machines, _| Box::pin(nvmet::reservations(machines)),
    },
    Case {
        name: "kernel-initiator",
        form: Form::Short,
        within: Duration::from_secs(300),
        run: |machines, _| Box::pin(kernel_initiator::initiator(machines)),
    },
    Case {
        name: "kernel-backend",
        form: Form::Long,
        within: Duration::from_secs(300),
        run: |machines, _| Box::pin(kernel_backend::backend(machines)),
    },
    Case {
        name: "lease-locks",
        form: Form::Long,
        within: Duration::from_secs(180),
        run: |machines, _| Box::pin(lease::locks(machines)),
    },
    Case {
        name: "conformance",
        form: Form::Short,
        within: Duration::from_secs(300),
        run: |machines, _| Box::pin(conformance::sequences(machines, conformance::SHORT)),
    },
    Case {
        name: "conformance-long",
        form: Form::Long,
        within: Duration::from_secs(1200),
        run: |machines, _| Box::pin(conformance::sequences(machines, conformance::LONG)),
    },
    Case {
        name: "user-initiator",
        form: Form::Short,
        within: Duration::from_secs(240),
        run: |machines, _| Box::pin(user_initiator::all(machines)),
    },
    Case {
        name: "ublk",
        form: Form::Long,
        within: Duration::from_secs(600),
        run: |machines, _| Box::pin(ublk::bridge(machines)),
    },
    drill("planned", Form::Short),
    drill("freeze", Form::Short),
    drill("sigterm", Form::Long),
    drill("crash", Form::Long),
    drill("storage-cut", Form::Long),
    drill("storage-replay", Form::Long),
    drill("target-restart", Form::Long),
    drill("kernel-panic", Form::Long),
    Case {
        name: "kubernetes",
        form: Form::Long,
        within: Duration::from_secs(1200),
        run: |machines, _| Box::pin(kubernetes::pods(machines)),
    },
];

/// Those that the arguments ask for.
pub fn chosen(options: &Options) -> Result<Vec<&'static Case>> {
    if options.cases.is_empty() {
        let wanted = |case: &&Case| options.all || case.form == Form::Short;
        return Ok(CASES.iter().filter(wanted).collect());
    }
    let find = |name: &String| {
        let found = CASES.iter().find(|case| case.name == name);
        found.with_context(|| format!("no case {name}; --list --all names them"))
    };
    options.cases.iter().map(find).collect()
}
