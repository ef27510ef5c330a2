"""`pipeline federate` and `pipeline site`: sites agree on a model without showing a row."""

from __future__ import annotations

import json

import click

from pipeline.console import say

__all__ = ["federate", "site"]


@click.command()
@click.argument("conf", metavar="CONF.yaml")
@click.option("--overwrite", is_flag=True, help="Replace the model if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: rounds, bytes, sites that were left out.")
@click.pass_context
def federate(ctx: click.Context, conf: str, overwrite: bool, as_json: bool) -> None:
    """Agree with the sites of CONF.yaml on a model, as their coordinator.

    Sites that are late or send what cannot be used are left out, with the reason, while a quorum stays.
    """
    from pipeline.jobs.federation import load_federation, run_federation

    spec = load_federation(conf)
    if overwrite:
        spec = spec.model_copy(update={"output": spec.output.model_copy(update={"overwrite": True})})
    model = run_federation(spec)
    if not ctx.find_root().params["quiet"]:
        say(str(model.subspace_))
        for name, reason in model.excluded_.items():
            say(f"left out {name}: {reason}")
        say(f"{model.n_rounds_} rounds with {len(model.sites_)} sites, {model.bytes_exchanged_} bytes exchanged")
    facts = {
        "model": spec.output.model,
        "sites": model.sites_,
        "excluded": model.excluded_,
        "rounds": model.rounds_,
        "bytes_exchanged": model.bytes_exchanged_,
    }
    click.echo(json.dumps(facts, indent=2) if as_json else spec.output.model)


@click.group()
def site() -> None:
    """Take part in a federation as a site."""


@site.command()
@click.argument("conf", metavar="CONF.yaml")
@click.pass_context
def serve(ctx: click.Context, conf: str) -> None:
    """Answer the coordinator that CONF.yaml names, until the federation is over.

    Only messages that it signed are answered; others are refused, and told on stderr.
    """
    from pipeline.jobs.federation import load_site, serve_site

    quiet = ctx.find_root().params["quiet"]
    model = serve_site(load_site(conf), lambda line: None if quiet else say(line))
    if model is not None:
        click.echo(model)


@site.command()
@click.argument("path", metavar="KEY.pem")
def key(path: str) -> None:
    """Make a key pair: the private part goes to KEY.pem, the public part is printed for the others' configurations."""
    from pipeline.jobs.seal import make_key

    click.echo(make_key(path))
