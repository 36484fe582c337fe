//! From a request to a WebSocket whose every buffer has a bound, also that of a frame or a message whose
//! end does not come.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;

use crate::api::ApiError;

/// Largest message taken from a client, in one frame or in many: the largest console input that old
/// clients could send.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Of one that may only look, and has nothing to say.
const SILENT_BYTES_MAX: usize = 4 * 1024;
/// Read at once, and kept for as long as the socket is.
const READ_BYTES: usize = 16 * 1024;
/// What waits to be written: one frame of output with each byte escaped (1.5 MiB), and what the library
/// answers by itself.
const WRITE_BYTES_MAX: usize = 2 << 20;

/// An upgrade, if the request is one.
pub(super) type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

pub(super) fn bounded(asked: Upgrade, read_only: bool) -> Result<WebSocketUpgrade, ApiError> {
    let upgrade = asked.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let max = if read_only { SILENT_BYTES_MAX } else { MESSAGE_BYTES_MAX };
    Ok(upgrade
        .max_message_size(max)
        // Room for a whole frame is made when its head is read.
        .max_frame_size(max)
        .read_buffer_size(READ_BYTES.min(max))
        .write_buffer_size(READ_BYTES)
        .max_write_buffer_size(WRITE_BYTES_MAX))
}
