//! `goprof agent`: flags, environment and file to one configuration, and the
//! agent itself.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::{Failure, raise_file_limit};
use crate::agent::{
    self,
    config::{Bytes, Config, Period, Rate},
};
use crate::profile::push::Protocol;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without any of these it samples the CPU time of every Go process at 19 Hz and
writes a window each minute below /var/lib/goprof. Flags count more than the
environment, and that more than the file. SIGHUP reads the file again; SIGTERM
writes what is open and ends within ten seconds.

Exit codes: 0 stopped, 1 it could not go on, 2 usage or a wrong configuration.")]
/// What `goprof agent` takes.
pub struct Args {
    /// Read the configuration from FILE (TOML)
    #[arg(short, long, value_name = "FILE", env = "GOPROF_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the configuration that all of it comes to, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Where windows go: a folder, s3://BUCKET/PREFIX, gs:// or az://
    #[arg(long, value_name = "URL", env = "GOPROF_STORE")]
    pub store: Option<String>,
    /// Where they wait for the store
    #[arg(long, value_name = "DIR", env = "GOPROF_SPOOL")]
    pub spool: Option<PathBuf>,
    /// Most bytes that may wait, e.g. 256MiB
    #[arg(long, value_name = "SIZE", env = "GOPROF_SPOOL_LIMIT")]
    pub spool_limit: Option<Bytes>,
    /// Push profiles to a Pyroscope server too
    #[arg(long, value_name = "URL", env = "GOPROF_PUSH_PYROSCOPE")]
    pub push_pyroscope: Option<String>,
    /// Push profiles to a Parca server too
    #[arg(long, value_name = "URL", env = "GOPROF_PUSH_PARCA")]
    pub push_parca: Option<String>,
    /// Push OTLP profiles too; their format still changes
    #[arg(long, value_name = "URL", env = "GOPROF_PUSH_EXPERIMENTAL_OTLP")]
    pub push_experimental_otlp: Option<String>,
    /// How long a window is, 1s to 1h
    #[arg(long, value_name = "TIME", env = "GOPROF_FLUSH")]
    pub flush: Option<Period>,
    /// Samples a second on each CPU, for rules that name no other
    #[arg(short, long, value_name = "HZ", env = "GOPROF_RATE")]
    pub rate: Option<Rate>,
    /// Address of the HTTP server
    #[arg(long, value_name = "ADDRESS:PORT", env = "GOPROF_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Memory to stay within, e.g. 128MiB
    #[arg(long, value_name = "SIZE", env = "GOPROF_MEMORY_LIMIT")]
    pub memory_limit: Option<Bytes>,
    /// This cluster's name
    #[arg(long, value_name = "NAME", env = "GOPROF_CLUSTER")]
    pub cluster: Option<String>,
    /// This machine's name (default: the host's)
    #[arg(long, value_name = "NAME", env = "GOPROF_NODE")]
    pub node: Option<String>,
    /// Most services with metrics of their own
    #[arg(long, value_name = "N", env = "GOPROF_MAX_TARGETS")]
    pub max_targets: Option<usize>,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// A wrong configuration, or what keeps the agent from going on.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let config = args.configuration().map_err(Failure::Usage)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    raise_file_limit();
    agent::log::take_over();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let read = move || args.configuration();
    let done = runtime.block_on(agent::run(config, read));
    // Without waiting for threads that took too long.
    runtime.shutdown_background();
    done?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The configuration, with the file as it is now.
    fn configuration(&self) -> Result<Config, String> {
        let mut config = match &self.config {
            None => Config::default(),
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("{shown}: cannot read it: {error}"))?;
                Config::parse(&text).map_err(|why| format!("{shown}: {why}"))?
            }
        };
        macro_rules! set {
            ($($flag:ident => $($key:ident).+;)*) => {$(
                if let Some(value) = &self.$flag {
                    config.$($key).+ = value.clone();
                }
            )*};
        }
        set! {
            store => store.url;
            spool => spool.path;
            spool_limit => spool.limit;
            flush => flush;
            rate => rate_hz;
            listen => http.listen;
            memory_limit => memory_limit;
            cluster => cluster;
            node => node;
            max_targets => metrics.max_targets;
        }
        for (kind, url) in [
            (Protocol::Pyroscope, &self.push_pyroscope),
            (Protocol::Parca, &self.push_parca),
            (Protocol::Otlp, &self.push_experimental_otlp),
        ] {
            if let Some(url) = url {
                config.push.set_url(kind, url);
            }
        }
        config.validate()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn configuration(words: &[&str]) -> Result<Config, String> {
        let words = std::iter::once("goprof").chain(words.iter().copied());
        Cli::parse_from(words).args.configuration()
    }

    #[test]
    fn flags_count_more_than_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "rate_hz = 29\nflush = \"5m\"\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = configuration(&["--config", path, "--rate", "7", "--node", "n"]).unwrap();
        assert_eq!(config.rate_hz, Rate(7));
        assert_eq!(config.flush, "5m".parse().unwrap());
        assert_eq!(config.node, "n");
        assert_eq!(config.store, Config::default().store);
    }

    #[test]
    fn receivers_are_added_or_moved_by_flags() {
        let words = ["--push-parca", "http://q:7070", "--push-experimental-otlp"];
        let config = configuration(&[&words[..], &["http://o:4317"]].concat()).unwrap();
        let receivers = config.push.receivers().iter();
        let urls: Vec<_> = receivers.map(|r| (r.name(), r.url.as_str())).collect();
        assert_eq!(
            urls,
            [("parca", "http://q:7070"), ("otlp", "http://o:4317")]
        );
        let error = configuration(&["--push-pyroscope", "here"]).unwrap_err();
        assert!(
            error.starts_with("push[0].url: \"here\" is no URL"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = configuration(&["--config", "/no/such/file"]).unwrap_err();
        assert!(
            error.starts_with("/no/such/file: cannot read it"),
            "{error}"
        );
    }
}
