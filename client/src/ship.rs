//! Bringing this program to where workers can ask for it.

use std::fs::File;

use scalable_proto::v1;
use scalable_store::{Capability, Content, Digest, Fetcher, SegmentPool, UploadRequest};

use crate::session::refused;
use crate::{Client, Error};

/// Makes sure that the scheduler's store has the program, or sees it where it lies.
///
/// # Errors
/// Of the call; [`Error::Refused`] when the store does not take it.
pub(crate) async fn ship(client: &Client, program: &v1::Executable) -> Result<(), Error> {
    let offer = v1::OfferRequest { digest: program.digest.clone(), size: program.size, path: program.path.clone() };
    let reply = client.offer_content(offer).await?;
    if !reply.needed {
        return Ok(());
    }
    let address = client.endpoint().store_address(&reply.address).to_owned();
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("the program {} could not be brought to the scheduler's store at {address}: {why}", program.path);
        refused(
            "PROGRAM_NOT_SHIPPED",
            message,
            "see that this machine reaches that address, or name a program of the image with `native`",
        )
    };
    let shown = reply.capability.as_ref().and_then(|shown| Capability::from_parts(shown.expires_ms, &shown.mac));
    let (Some(capability), Some(digest)) = (shown, Digest::from_slice(&program.digest)) else {
        return Err(failed(&"the scheduler gave no right to"));
    };
    let file = File::open(&program.path).map_err(|error| failed(&error))?;
    let content = Content::from_file(file, program.size).map_err(|error| failed(&error))?;
    let fetcher = Fetcher::start(client.endpoint().fetcher_options(SegmentPool::new(0))).map_err(|error| failed(&error))?;
    fetcher.upload(UploadRequest { address: address.clone(), content, digest, capability }).await.map_err(|error| failed(&error))
}
