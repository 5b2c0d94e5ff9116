//! Socket Mode: a WebSocket to Slack by which clicks come. Slack closes it every few hours and says so before; it is
//! opened again at once then, and with growing pauses where it can't be.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use super::{
    super::{
        address::{ServiceUrl, WEB_SOCKET},
        limits::{CLICKS_MAX, SOCKET_BYTES_MAX, Timing},
        net::{Net, Stream},
        queue::Failure,
        worker::jitter,
    },
    api::Api,
    clicks::{Click, Clicks},
};
use crate::{secret::Source, sync::lock};

/// Longest pause between attempts to open it.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Listens for clicks.
pub(in super::super) struct Listener {
    app_token: Source,
    api: Api,
    net: Net,
    timing: Timing,
    clicks: Arc<Clicks>,
    places: Arc<Semaphore>,
    state: Arc<Mutex<String>>,
}

impl Listener {
    pub(super) fn new(
        app_token: Source,
        api: Api,
        net: Net,
        timing: Timing,
        clicks: Clicks,
    ) -> Self {
        Self {
            app_token,
            api,
            net,
            timing,
            clicks: Arc::new(clicks),
            places: Arc::new(Semaphore::new(CLICKS_MAX)),
            state: Arc::new(Mutex::new("connecting".to_owned())),
        }
    }

    /// How it does, in words.
    pub(in super::super) fn state(&self) -> Arc<Mutex<String>> {
        self.state.clone()
    }

    /// Listens for ever.
    pub(in super::super) async fn run(self) {
        let mut pause = self.timing.reconnect;
        // Answers are given to the end, whatever becomes of the connection by which the click came.
        let mut answers = JoinSet::new();
        loop {
            let opened = Instant::now();
            match self.listen(&mut answers).await {
                // Slack wants it anew. One that was open for no time at all isn't opened in a hurry.
                Ok(()) if opened.elapsed() > self.timing.reconnect => {
                    pause = self.timing.reconnect;
                    continue;
                }
                Ok(()) => {}
                Err(Dropped { failure, was_open }) => {
                    if was_open {
                        pause = self.timing.reconnect;
                    }
                    tracing::debug!(why = %failure.why, "Slack's socket is closed");
                    *lock(&self.state) = format!("not connected: {}", failure.why);
                }
            }
            sleep(pause.mul_f64(0.5 + 0.5 * jitter())).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    /// Listens until Slack wants to be called anew, or it breaks.
    async fn listen(&self, answers: &mut JoinSet<()>) -> Result<(), Dropped> {
        let opened = timeout(self.timing.attempt, self.open()).await;
        let opened =
            opened.unwrap_or_else(|_| Err(Failure::down("Slack's socket doesn't open in time")));
        let mut socket = opened.map_err(|failure| Dropped {
            failure,
            was_open: false,
        })?;
        "connected".clone_into(&mut lock(&self.state));
        let dropped = |why: &str| Dropped {
            failure: Failure::down(why),
            was_open: true,
        };
        let mut ping = interval(self.timing.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = socket.next() => {
                    let message = message.and_then(Result::ok);
                    let message = message.ok_or_else(|| dropped("Slack's socket broke"))?;
                    heard = Instant::now();
                    let text = match message {
                        Message::Text(text) => text,
                        Message::Close(_) => return Err(dropped("Slack closed the socket")),
                        _ => continue,
                    };
                    let Ok(envelope) = serde_json::from_str::<Value>(&text) else { continue };
                    let kind = envelope.get("type").and_then(Value::as_str).unwrap_or_default();
                    if kind == "disconnect" {
                        return Ok(());
                    }
                    // Within three seconds, or it comes again: before anything is done about it.
                    if let Some(id) = envelope.get("envelope_id").and_then(Value::as_str) {
                        let ack = json!({"envelope_id": id}).to_string();
                        self.send(&mut socket, Message::text(ack)).await?;
                    }
                    if kind == "interactive" && let Some(click) = envelope.get("payload").and_then(Click::of) {
                        self.answer(click, answers);
                    }
                }
                _ = ping.tick() => {
                    if heard.elapsed() > self.timing.ping.saturating_mul(2) {
                        return Err(dropped("Slack's socket is silent"));
                    }
                    self.send(&mut socket, Message::Ping(bytes::Bytes::new())).await?;
                }
                Some(_) = answers.join_next() => {}
            }
        }
    }

    fn answer(&self, click: Click, answers: &mut JoinSet<()>) {
        let clicks = self.clicks.clone();
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                answers.spawn(async move {
                    clicks.handle(click).await;
                    drop(place);
                });
            }
            // Twice as many may be told so; who clicks then clicks again.
            Err(_) if answers.len() < 2 * CLICKS_MAX => {
                answers.spawn(async move { clicks.busy(click).await });
            }
            Err(_) => {}
        }
    }

    async fn send(
        &self,
        socket: &mut WebSocketStream<Stream>,
        message: Message,
    ) -> Result<(), Dropped> {
        let sent = timeout(self.timing.connect, socket.send(message)).await;
        if matches!(sent, Ok(Ok(()))) {
            return Ok(());
        }
        let failure = Failure::down("Slack's socket takes nothing");
        Err(Dropped {
            failure,
            was_open: true,
        })
    }

    async fn open(&self) -> Result<WebSocketStream<Stream>, Failure> {
        let answer = self
            .api
            .call("apps.connections.open", &self.app_token, &json!({}))
            .await?;
        let url = answer.get("url").and_then(Value::as_str);
        let url = url.ok_or_else(|| Failure::down("Slack gives no address for its socket"))?;
        // It holds a ticket, so that it is told to nobody.
        let url = ServiceUrl::of(url, &WEB_SOCKET).map_err(|_| {
            Failure::down("Slack gives an address for its socket that can't be used")
        })?;
        let stream = self
            .net
            .connect(url.host(), url.port(), url.is_secure())
            .await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(SOCKET_BYTES_MAX))
            .max_frame_size(Some(SOCKET_BYTES_MAX));
        let (socket, _) = client_async_with_config(url.expose(), stream, Some(config))
            .await
            .map_err(|_| Failure::down(format!("{} opens no socket", url.host())))?;
        Ok(socket)
    }
}

/// The connection is gone.
struct Dropped {
    failure: Failure,
    was_open: bool,
}
