//! Containers that run without Kubernetes, by their names: of Docker's engine and
//! Podman's service, which answer alike, and of Podman's own list, as Podman runs
//! without a service. Asks only when somebody wants to know, and only reads.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::{Body, to_bytes};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, sync::Notify, time::timeout};

use super::{containers::Known, source::Source, text::clean};

/// The largest answer taken: some kilobytes for each container.
const MAX_ANSWER_BYTES: usize = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions; doubled while nobody answers, up to the other.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engines {
    /// Sockets that speak Docker's API.
    pub sockets: Vec<PathBuf>,
    /// Lists of containers, as Podman keeps them.
    pub lists: Vec<PathBuf>,
}

impl Default for Engines {
    /// Where they are unless somebody says otherwise; root's alone, as other
    /// users could give their answers for everybody's containers.
    fn default() -> Self {
        let sockets = ["/run/docker.sock", "/run/podman/podman.sock"];
        let folder = Path::new("/var/lib/containers/storage/overlay-containers");
        // The second has those that Podman removes when they end.
        let lists = ["containers.json", "volatile-containers.json"];
        Self {
            sockets: sockets.map(PathBuf::from).to_vec(),
            lists: lists.map(|name| folder.join(name)).to_vec(),
        }
    }
}

/// Keeps `source` as the engines have their containers, whenever `wanted`.
pub(super) async fn follow(engines: Engines, wanted: Arc<Notify>, source: Arc<Source>) {
    let mut pause = PAUSE;
    loop {
        wanted.notified().await;
        pause = match ask_all(&engines, &source).await {
            Ok(()) => PAUSE,
            Err(error) => {
                source.fail(&error);
                (2 * pause).min(LONGEST_PAUSE)
            }
        };
        source.end_round();
        tokio::time::sleep(pause).await;
    }
}

type Containers = Vec<(String, Known)>;

/// Tells `source` what each says that is there.
async fn ask_all(engines: &Engines, source: &Source) -> Result<()> {
    let mut failure = Ok(());
    let mut note = |place: &Path, answer: Result<Option<Containers>>| match answer {
        Ok(None) => {}
        Ok(Some(containers)) => {
            let group = place.to_string_lossy();
            source.tell(|known, now| known.put(&group, containers, now));
        }
        Err(error) => {
            failure = Err(error.context(format!("ask for containers at {}", place.display())));
        }
    };
    for socket in engines.sockets.iter().filter(|socket| socket.exists()) {
        let answer = timeout(TIMEOUT, ask(socket)).await;
        let answer = answer.context("no answer in time").flatten();
        note(socket, answer.map(Some));
    }
    for list in &engines.lists {
        note(list, read(list));
    }
    failure
}

async fn ask(socket: &Path) -> Result<Containers> {
    let stream = UnixStream::connect(socket).await.context("connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/containers/json")
        .header(header::HOST, "localhost")
        .body(Body::empty())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        ensure!(
            answer.status() == StatusCode::OK,
            "it says {}",
            answer.status()
        );
        let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await?;
        anyhow::Ok(body)
    };
    tokio::pin!(answer);
    let body = tokio::select! {
        body = &mut answer => body?,
        // It may end as soon as all is there.
        ended = connection => {
            ended?;
            answer.await?
        }
    };
    of_engine(&body)
}

/// What `GET /containers/json` says (Docker's API since 1.24, `ContainerList`).
fn of_engine(body: &[u8]) -> Result<Containers> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let listed: Vec<Listed> = serde_json::from_slice(body).context("no list of containers")?;
    let named = listed.into_iter().map(|listed| {
        // A container that another links to has that name as well, below it.
        let mut names = listed
            .names
            .iter()
            .filter_map(|name| name.strip_prefix('/'));
        let own = names.find(|name| !name.contains('/'));
        (listed.id, own.unwrap_or_default().to_owned())
    });
    Ok(known(named))
}

/// `None` where there is no such list.
fn read(list: &Path) -> Result<Option<Containers>> {
    let file = match File::open(list) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.take(MAX_ANSWER_BYTES as u64 + 1)
        .read_to_end(&mut text)?;
    if text.len() > MAX_ANSWER_BYTES {
        bail!("more than {MAX_ANSWER_BYTES} bytes");
    }
    of_list(&text).map(Some)
}

/// `containers.json` of containers/storage.
fn of_list(text: &[u8]) -> Result<Containers> {
    #[derive(Deserialize)]
    struct Listed {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let listed: Vec<Listed> = serde_json::from_slice(text).context("no list of containers")?;
    let named = listed.into_iter();
    Ok(known(named.map(|mut listed| {
        let own = (!listed.names.is_empty()).then(|| listed.names.swap_remove(0));
        (listed.id, own.unwrap_or_default())
    })))
}

fn known(named: impl Iterator<Item = (String, String)>) -> Containers {
    let named = named.map(|(id, name)| (id, clean(name)));
    let named = named.filter(|(_, name)| !name.is_empty());
    named
        .map(|(id, name)| (id, Known { name, pod: None }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(containers: Result<Containers>) -> Vec<(String, String)> {
        let containers = containers.unwrap().into_iter();
        containers.map(|(id, known)| (id, known.name)).collect()
    }

    fn pair(id: &str, name: &str) -> (String, String) {
        (id.to_owned(), name.to_owned())
    }

    #[test]
    fn an_engines_containers_have_their_own_name() {
        let body = r#"[{"Id":"a","Names":["/web/db","/db"],"Image":"x"},
            {"Id":"b","Names":[]},{"Id":"c"},{"Id":"d","Names":["/e\n\u001b[2J"]}]"#;
        let expected = [pair("a", "db"), pair("d", "e\u{fffd}\u{fffd}[2J")];
        assert_eq!(names(of_engine(body.as_bytes())), expected);
    }

    #[test]
    fn podmans_list_is_read() {
        let text = r#"[{"id":"a","names":["web"],"layer":"l","metadata":"{}"},{"id":"b"}]"#;
        assert_eq!(names(of_list(text.as_bytes())), [pair("a", "web")]);
    }

    #[test]
    fn what_is_no_list_is_said() {
        for text in [&b""[..], b"{}", b"[{}]", b"[1]", &[0xff; 64]] {
            assert!(of_engine(text).is_err() && of_list(text).is_err());
        }
        assert!(read(Path::new("/no/such/list")).unwrap().is_none());
    }
}
