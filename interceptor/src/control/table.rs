//! Requests of the control API as a table: a method, a path, the role that it takes and what answers it.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler,
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{self, MethodRouter},
};

use super::{
    host::Host,
    person::{Person, Role},
};

/// A kind of request.
pub(super) struct Route {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the API's document is held to it, by a test")
    )]
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// The least that may ask for it.
    pub(super) role: Role,
    answer: MethodRouter<Arc<dyn Host>>,
}

impl Route {
    pub(super) fn get<T: 'static>(
        path: &'static str,
        role: Role,
        handler: impl Handler<T, Arc<dyn Host>>,
    ) -> Self {
        Self {
            method: Method::GET,
            path,
            role,
            answer: routing::get(handler),
        }
    }

    pub(super) fn post<T: 'static>(
        path: &'static str,
        role: Role,
        handler: impl Handler<T, Arc<dyn Host>>,
    ) -> Self {
        Self {
            method: Method::POST,
            path,
            role,
            answer: routing::post(handler),
        }
    }

    pub(super) fn delete<T: 'static>(
        path: &'static str,
        role: Role,
        handler: impl Handler<T, Arc<dyn Host>>,
    ) -> Self {
        Self {
            method: Method::DELETE,
            path,
            role,
            answer: routing::delete(handler),
        }
    }
}

/// What answers `routes`, each to those alone who have its role.
pub(super) fn router(routes: Vec<Route>) -> Router<Arc<dyn Host>> {
    routes.into_iter().fold(Router::new(), |router, route| {
        let least = middleware::from_fn_with_state(route.role, require);
        router.route(route.path, route.answer.route_layer(least))
    })
}

/// Lets by who has the role `least`, or one that may more.
async fn require(
    State(least): State<Role>,
    person: Person,
    request: Request,
    next: Next,
) -> Response {
    match person.may(least) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}
