//! `gpu pull RUN`: what was kept of it, because it could not come home, comes home after all.

use super::{attach, drivers_words, known};
use crate::{
    commands::{config::Settings, gpu_run, need_root, this_machine},
    gpu::{
        driver,
        provider::{self, Choice},
        pull::{self, Stand},
        runs,
        spec::{RunId, Source, Spec},
        state::Event,
    },
    ui::{Try as _, Ui, table},
};
use anyhow::{Context as _, Result, bail};
use std::{path::Path, sync::Arc};
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
    /// The size to rent; several, the best first. The cheapest when left out
    #[arg(long = "vm-size", value_name = "SIZE", value_delimiter = ',')]
    sizes: Vec<String>,
    /// Start it and come back at once
    #[arg(short, long)]
    detach: bool,
    /// Ask no question
    #[arg(short, long)]
    yes: bool,
    /// Print what happens as JSON, a line each
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let Args { run, sizes, detach, yes, json } = args;
    let run = &run;
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    let results = runs::results(&config, run);
    let nothing = |words: &str| {
        ui.say(words);
        if json {
            ui.out(serde_json::json!({ "run": run, "pulling": false, "why": words }));
        }
        Ok(0)
    };
    match pull::stand(&known(&host, run)?) {
        Stand::UnderWay => {
            return nothing(&format!(
                "{run} is under way: its results come home by themselves, every few seconds"
            ));
        }
        Stand::Home => return nothing(&format!("everything of {run} is home: {}", results.display())),
        Stand::Pulling if detach => return nothing(&format!("{run} is on its way home already")),
        Stand::Pulling => return attach::follow(&host, &config, settings, (run, attach::Of::Pull), json, ui),
        Stand::Lost(why) => {
            let lost = || bail!("nothing was kept of {run}, and not all of it came home: {why}");
            return lost().or_try(format_args!("what there is lies in {}", results.display()));
        }
        Stand::Kept => {}
    }
    let busy = || anyhow::anyhow!("{run} is in somebody's hands");
    let mut held = runs::hold(&host, run)?.with_context(busy).or_try("the same again")?;
    let provider = provider::of(&held.state.spec.source, &host, &config)?;
    if pull::find(&mut held, provider.as_ref(), OffsetDateTime::now_utc())?.is_none() {
        let none = || bail!("it was not kept after all, whatever was asked for");
        return none().or_try(format_args!("what there is lies in {}", results.display()));
    }
    let wish = pull::wish(&held.state, sizes).with_context(|| format!("{run} never had a machine"))?;
    let choice = provider::offers(&wish, &host, &config)?;
    ui.say(plan(&wish, &choice, &results));
    let offers = pull::unzoned(gpu_run::to_be_had(choice)?);
    if provider.is_paid() && !yes && !gpu_run::confirmed()? {
        return Ok(1);
    }
    // What was said to the run is not meant for this.
    runs::hush(&host, run)?;
    held.note(OffsetDateTime::now_utc(), &Event::Pulling { offers })?;
    drop(held);
    driver::start(&host, run, &drivers_words(settings))?;
    if detach {
        ui.say(attach::next_commands(run));
        if json {
            ui.out(serde_json::json!({ "run": run, "pulling": true }));
        }
        return Ok(0);
    }
    attach::follow(&host, &config, settings, (run, attach::Of::Pull), json, ui)
}

fn plan(wish: &Spec, choice: &Choice, results: &Path) -> String {
    let rows = table(&crate::gpu::offer::table(&choice.rows));
    let place = match wish.source {
        Source::Azure => format!("on a machine that is made of it\n{rows}"),
        Source::Local | Source::Ssh { .. } => format!("from {}", wish.source),
    };
    format!("{}: what was kept of it, {place}\nresults: {}", wish.run, results.display())
}
