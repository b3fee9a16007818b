//! The program itself before a simulated Azure, from `gpu-run` to the receipt.

use crate::{
    cloud::{Cloud, Metal, Options, Pace, Takes},
    here::Here,
    process::CompletedProcess,
};
use std::{fs, process::Command, sync::Arc, time::Duration};

pub const T4: &str = "Standard_NC4as_T4_v3";

pub struct Story {
    pub cloud: Cloud,
    pub here: Here,
    /// A directory that machines have, for the script to count in.
    there: String,
}

impl Story {
    /// None, and said so, where Microsoft's documents are not beside the project.
    pub fn new(here: Here, port: u16, there: &str, options: Options) -> Option<Self> {
        // Time may go faster in the cloud than for who keeps its tokens.
        let cloud = Cloud::start(Options { token: Duration::from_secs(24 * 3600), ..options })?;
        let settings = format!(
            "[gpu.azure]\nsubscription = {:?}\nendpoint = {:?}\nlogin = {:?}\nmetadata = {:?}\nprices = {:?}\n\
             audience = \"https://management.azure.com\"\nssh_port = {port}\n",
            cloud.subscription(),
            cloud.arm(),
            cloud.login(),
            cloud.imds(),
            cloud.prices(),
        );
        fs::write(here.path("c.toml"), settings).unwrap();
        Some(Self { cloud, here, there: there.into() })
    }

    /// On machines that are this one, twenty times as fast as the world: what takes Azure minutes takes seconds here.
    pub fn faster(here: Here, port: u16, metal: Arc<dyn Metal>, there: &str) -> Option<Self> {
        let takes = Takes { retry_after: Some(1), ..Takes::default() };
        Self::new(
            here,
            port,
            there,
            Options { pace: Pace::Running(20.0), takes, metal, ..Options::default() },
        )
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let (config, principal) = (self.here.path("c.toml"), self.cloud.principal());
        let first = ["--config", config.to_str().unwrap()];
        let mut command = self.here.command(&[&first, arguments].concat());
        command
            .env("AZURE_TENANT_ID", principal.tenant)
            .env("AZURE_CLIENT_ID", principal.client)
            .env("AZURE_CLIENT_SECRET", principal.secret);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> CompletedProcess {
        CompletedProcess::run(&mut self.command(arguments))
    }

    pub fn gpu_run(&self, name: &str, more: &[&str]) -> CompletedProcess {
        self.run(&self.words(name, more, &[&self.there, "2"]).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The script as it is just now, with arguments of its own; nobody watches.
    #[track_caller]
    pub fn begin(&self, name: &str, more: &[&str], arguments: &[&str]) {
        let line = self.words(name, &[&["-y", "--detach"], more].concat(), arguments);
        let begun = self.run(&line.iter().map(String::as_str).collect::<Vec<_>>());
        begun.assert_code(0);
    }

    fn words(&self, name: &str, more: &[&str], arguments: &[&str]) -> Vec<String> {
        let script = self.here.path("code/train.py");
        let first =
            ["gpu-run", script.to_str().unwrap(), "--provider", "azure", "--name", name, "--vm-size", T4];
        [&first, more, &["--"], arguments].concat().into_iter().map(Into::into).collect()
    }

    /// Wait for an entry of a run's journal; what came instead, if it does not.
    #[track_caller]
    pub fn until_event(&self, run: &str, event: &str) {
        self.here.until(&format!("{run}: {event}"), || self.here.events(run).iter().any(|one| one == event));
    }

    /// All of it is given back, and nothing is paid for.
    #[track_caller]
    pub fn nothing_left(&self) {
        assert_eq!(self.cloud.left(), Vec::<String>::new(), "{}", self.cloud.story());
        assert_eq!(self.cloud.costing(), Vec::<String>::new());
        self.cloud.assert_honest();
    }

    /// What a person reads about a run that is over.
    #[track_caller]
    pub fn receipt(&self, run: &str) -> serde_json::Value {
        self.run(&["gpu", "cost", run, "--json"]).json()
    }

    /// Rented, sent to, run, brought home, given back, and proven gone.
    pub fn runs_to_its_receipt(&self) {
        self.runs_to_its_receipt_with(&[]);
    }

    pub fn runs_to_its_receipt_with(&self, more: &[&str]) {
        // Stories beside one another see each other's processes, and an agent ends all that is of a run's name.
        let run = &format!("esn-{}", std::process::id());
        let begun = self.gpu_run(run, &[&["-y", "--detach", "--secret", "API_KEY"], more].concat());
        begun.assert_code(0);
        for event in ["rented", "prepared", "started", "exited", "fetched", "returned"] {
            self.until_event(run, event);
        }
        let attached = self.run(&["gpu", "attach", run]);
        attached.assert_code(7).assert_stderr("gone: all of it, looked for twice").assert_stderr(T4);
        assert_eq!(self.here.result(run, "step1.txt").as_deref(), Some("loss 1"));
        assert!(self.here.result(run, "log.txt").unwrap().contains(&format!("trained on {run}\n")));

        self.nothing_left();
        let receipt = self.receipt(run);
        assert_eq!(
            (&receipt["proven_gone"], &receipt["all_home"]),
            (&true.into(), &true.into()),
            "{receipt}"
        );
        assert!(receipt["cost"].as_u64().unwrap() > 0, "{receipt}");
        let sweep = self.run(&["gpu", "sweep"]);
        assert_eq!((sweep.code, sweep.stderr.as_str()), (0, "nothing is loose\n"));
    }
}
