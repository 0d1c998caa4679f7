//! TLS by rustls: what clients are shown, and whom engines are asked to be.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};

use crate::config::Tls;

/// For connections of clients: shows the certificate, and speaks HTTP/1.1.
///
/// # Errors
/// Which file cannot be read or what is wrong with it, for the member of the configuration that is named first.
pub fn acceptor(tls: &Tls) -> Result<Arc<Acceptor>, (&'static str, String)> {
    let certificates = certificates(&tls.certificate).map_err(|e| ("certificate", e))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|e| ("key", format!("{}: no private key in PEM: {e}", tls.key.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, key))
        .map_err(|e| ("key", format!("{}: not the key of {}: {e}", tls.key.display(), tls.certificate.display())))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(Acceptor::from_server_config(Arc::new(config))))
}

/// Authorities that may have signed an engine's certificate.
///
/// # Errors
/// If the file has none, or one that is none.
pub fn authorities(path: &Path) -> Result<Arc<CaType>, String> {
    let mut store = RootCertStore::empty();
    let wrapped = certificates(path)?.into_iter().map(|certificate| {
        let raw = certificate.to_vec();
        // pingora panics at one that cannot be read.
        store.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(WrappedX509::new(raw, parse_x509))
    });
    wrapped.collect::<Result<Arc<CaType>, String>>()
}

/// A number that other authorities have another of.
pub fn fingerprint(authorities: &CaType) -> u64 {
    let mut hasher = DefaultHasher::new();
    authorities.iter().for_each(|certificate| certificate.borrow_raw_cert().hash(&mut hasher));
    hasher.finish()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(none) if none.is_empty() => Err(format!("{}: no certificate in PEM", path.display())),
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(format!("{}: cannot be read: {e}", path.display())),
    }
}
