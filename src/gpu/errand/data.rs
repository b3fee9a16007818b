//! A run's datasets, on the way to its machine or found there already. What is read of them here is remembered, and which
//! they are is told to MLflow.

use super::{Errand, SENDING};
use crate::{
    gpu::{
        agent::site::Ask,
        job::Hopeless,
        provenance,
        provider::Machine,
        reader::{FileSource, Odd},
        spec::Spec,
        target::Target,
        tree::{self, Known, Outline, Squeeze, Tree},
    },
    host::{
        HASHES,
        beneath::{Beneath, Rel},
    },
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow};
use std::path::{Path, PathBuf};

impl Errand<'_> {
    /// `go` waits until they may be sent, and says whether they still shall be. Until then they are read.
    pub(super) fn send_data(&self, spec: &Spec, machine: &Machine, go: &dyn Fn() -> bool) -> Result<()> {
        for name in &spec.data {
            match &machine.data {
                // Not the code came there, and that is told of.
                Some(_) if !go() => {}
                Some(data) => self.find_clone(spec, machine, name, &data.join(name))?,
                None if matches!(machine.target, Target::Local) => {
                    if !go() {
                        continue;
                    }
                    let at = self.given.data.join(name);
                    self.ask_placed(spec, machine, name, (&at, false))?;
                    self.note_placed(name);
                }
                None => self.send_copy(spec, machine, name, go)?,
            }
        }
        Ok(())
    }

    fn send_copy(&self, spec: &Spec, machine: &Machine, name: &str, go: &dyn Fn() -> bool) -> Result<()> {
        let (rel, (source, tree)) = (Rel::new(name)?, self.read_data(name)?);
        (self.say)(&format!("{name}: {} files, {} MiB", tree.0.len(), tree.bytes() >> 20));
        if !go() {
            return Ok(());
        }
        let sent = self.hold(spec, machine, SENDING, |wire| {
            wire.tell(&Ask::Data { name: rel, hash: tree.hash() })?;
            tree::send(wire, &source, &tree, Squeeze::No)
        });
        let sent = sent.with_context(|| format!("sending the dataset {name}"))?;
        (self.say)(&format!("{name} is there; {} files were sent", sent.files));
        Ok(())
    }

    /// A clone is believed as far as all that one sees of it is as it is here: each file's time and inode are. Then the
    /// hash of what is here is that of what is there.
    fn find_clone(&self, spec: &Spec, machine: &Machine, name: &str, at: &Path) -> Result<()> {
        let look = || tree::outline(&self.dataset(name)?);
        let here = look()?;
        let there = self.ask_placed(spec, machine, name, (at, true)).or_try(format!(
            "`echoes-appliance gpu ssh {}` and there `systemctl status '*.mount'`; or --data-by copy",
            spec.run
        ))?;
        let there = there.with_context(|| format!("the machine does not say what it sees of {name}"))?;
        self.ensure_same(name, &here, &there)?;
        self.note_placed(name);
        // It took a while, and is a tag of what the script reads.
        self.ensure_same(name, &look()?, &there)?;
        (self.say)(&format!("{name} is there, on a clone of the data disk: {} files", there.files));
        Ok(())
    }

    fn ensure_same(&self, name: &str, here: &Outline, there: &Outline) -> Result<()> {
        if here == there {
            return Ok(());
        }
        let seen = |of: &Outline| format!("{} files of {} bytes", of.files, of.bytes);
        Err(anyhow!(
            "{name} has changed since the data disk was cloned: {} here, {} there",
            seen(here),
            seen(there)
        ))
        .context(Hopeless)
        .or_try("leave it alone while runs that read it are prepared, and start it again; or --data-by copy")
    }

    fn ask_placed(
        &self,
        spec: &Spec,
        machine: &Machine,
        name: &str,
        (at, clone): (&Path, bool),
    ) -> Result<Option<Outline>> {
        let ask = Ask::Placed { name: Rel::new(name)?, at: at.into(), clone };
        // Of a clone that was made just now, each directory is fetched from somewhere first.
        let found = self.hold(spec, machine, SENDING, |wire| {
            wire.tell(&ask)?;
            wire.hear()
        });
        found.with_context(|| format!("looking for the dataset {name}"))
    }

    fn dataset(&self, name: &str) -> Result<Beneath> {
        let data = &self.given.data;
        Beneath::open(self.host, &data.join(name))?
            .with_context(|| format!("there is no dataset {name} in {}", data.display()))
    }

    /// All of a dataset, as it is here.
    fn read_data(&self, name: &str) -> Result<(FileSource, Tree)> {
        let (at, mut known) = (self.given.data.join(name), self.known(name)?);
        let before = known.clone();
        let read = (&mut known, Odd::Refused);
        let (source, tree, _) = self.given.reader.files(self.host, &at, read, self.over(SENDING).as_ref())?;
        if known != before {
            self.remember(name, &known)?;
        }
        self.note([provenance::data(name, &tree)]);
        Ok((source, tree))
    }

    /// What is not sent is read for MLflow alone, where there is one; the script needs it without that, too.
    fn note_placed(&self, name: &str) {
        if !self.given.tags.is_empty()
            && let Err(error) = self.read_data(name)
        {
            (self.say)(&format!("MLflow is not told which {name} it is: {error:#}"));
        }
    }

    /// What was read of this dataset before: to read it through for each run would take as long as to send it.
    fn known(&self, name: &str) -> Result<Known> {
        let bytes = self.host.read_at_most(&self.hashes(name)?, HASHES)?.unwrap_or_default();
        // One that cannot be read is made anew.
        let known: Vec<_> = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(known.into_iter().collect())
    }

    fn remember(&self, name: &str, known: &Known) -> Result<()> {
        self.host.write(&self.hashes(name)?, 0o600, &serde_json::to_vec(&known.iter().collect::<Vec<_>>())?)
    }

    /// File of the hashes that each person has read: another's are not believed.
    fn hashes(&self, name: &str) -> Result<PathBuf> {
        let hashes = self.given.memory.join("hashes");
        let person = self.given.reader.person()?;
        let hashes = if person.is_us() { hashes } else { hashes.join(format!("of-{}", person.uid)) };
        Ok(hashes.join(format!("{name}.json")))
    }
}
