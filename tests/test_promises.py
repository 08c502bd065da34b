"""Each sentence of README's chapter on security, and other promises about safety, with the tests that hold them.

A sentence that changes fails here, until somebody has looked whether its tests still hold it.
"""

# ruff: noqa: E501 - names of tests are long
from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SECURITY_CHAPTER = {
    "**A program that can reach the port can use your credentials.**": (
        "whole/test_threats::test_ssrf_through_another_local_app_needs_a_key_once_callers_are_defined",
    ),
    "By default, the proxy listens on `localhost`: 127.0.0.1 and ::1.": (
        "server/test_listeners::test_localhost_is_both_its_addresses_on_one_port_for_projects_of_their_own_too",
        "config/test_settings::test_a_minimal_file_gets_every_default",
    ),
    "Without `[callers]`, the proxy refuses to start on an address that other computers can reach.": (
        "whole/test_threats::test_other_containers_and_machines_cannot_be_let_in_without_callers",
        "server/test_passed_sockets::test_a_socket_that_others_can_reach_needs_callers",
    ),
    "With `[callers]`, each request needs a key (bearer token, Basic password, `X-API-Key` or `?csq_key=`), but a browser that opens `/` is led to `/-/`.": (
        "gateway/test_callers::test_a_key_is_accepted_and_does_not_reach_the_cloud",
        "gateway/test_own::test_a_browser_that_opens_the_root_is_led_to_the_page",
        "gateway/test_callers::test_without_a_known_key_the_answer_is_401_and_asks_for_basic",
    ),
    "A caller can be limited to projects and to reading.": (
        "gateway/test_callers::test_a_caller_reaches_only_its_projects",
        "gateway/test_callers::test_a_read_only_caller_cannot_change_data_but_may_read_by_post",
        "gateway/test_policy::test_a_pinned_project_cannot_be_left_by_prefix_escape_field_or_projectid",
    ),
    "A request with a key or secret elsewhere in its head is refused.": (
        "gateway/test_policy::test_a_key_or_secret_in_the_head_is_refused_and_not_repeated",
        "gateway/test_policy::test_a_key_in_the_place_of_the_method_is_refused_and_not_repeated",
        "logs/test_leaks::test_a_long_secret_is_found_in_each_coding_at_each_place",
    ),
    "`Cookie` and `Referer` are dropped.": (
        "gateway/test_policy::test_a_key_or_secret_in_the_head_is_refused_and_not_repeated",
    ),
    "Web pages of other sites are refused, by `Host`, `Origin`, `Sec-Fetch-Site` and `Referer`; a link may open"
    " the page `/-/`.": (
        "whole/test_foreign_pages::test_a_page_of_another_site_makes_no_call",
        "whole/test_foreign_pages::test_a_link_of_another_site_opens_the_page_and_no_frame_does",
        "whole/test_browser::test_a_web_page_of_another_origin_reaches_nothing_by_any_way_it_has",
        "whole/test_browser::test_dns_rebinding_reaches_nothing_though_the_browser_takes_it_for_the_same_origin",
        "gateway/test_guard::test_requests_of_other_sites_pages_are_a_403_by_referer",
    ),
    "A token goes only to hosts in `contentsquare.allowed_endpoints`, over TLS except on loopback.": (
        "tokens/test_answer::test_these_endpoints_may_not_have_the_token",
        "whole/test_threats::test_ssrf_by_the_endpoint_of_a_token_answer_is_refused_and_the_token_not_sent",
        "whole/test_threats::test_tls_downgrade_plain_http_to_anything_but_loopback_is_no_configuration",
    ),
    "TLS is always verified.": (
        "whole/test_threats::test_tls_downgrade_there_is_no_setting_that_stops_verification",
        "whole/test_threats::test_tls_downgrade_a_certificate_of_nobody_we_trust_gets_neither_secret_nor_token",
    ),
    "No log line holds a token, or a secret of at least 6 characters.": (
        "whole/test_canary::test_a_bad_day_leaves_no_secret_in_logs_errors_tracebacks_answers_status_or_argv",
        "app/test_reload::test_no_log_line_holds_a_token_or_secret_that_is_or_was_lately_in_use",
        "logs/test_redact::test_none_of_many_secrets_is_left_wherever_it_stands",
    ),
    "An answer of the proxy's own does only if its caller sent it.": (
        "admin/test_admin::test_no_answer_holds_a_token_a_secret_or_a_client_id",
        "admin/test_admin::test_no_error_of_the_token_endpoint_brings_a_secret_into_an_answer",
        "gateway/test_callers::test_a_key_that_a_caller_sent_in_a_wrong_place_is_shown_to_no_other_caller",
    ),
    "A configuration, secret, key or CA file that others can change is refused; so is a secret of yours that"
    " they can read (not in a memory file system, where the platform chose the mode).": (
        "config/test_acl::test_a_secret_is_exposed_where_others_can_read_its_file",
        "config/test_trust::test_a_file_that_others_can_write_to_is_refused_with_the_chmod",
        "config/test_trust::test_what_belongs_to_another_user_is_refused_with_the_chown",
        "config/test_trust::test_no_command_uses_a_configuration_that_others_can_write_to",
        "app/test_reload::test_what_another_user_wrote_while_it_runs_changes_nothing",
        "config/test_secrets::test_a_secret_file_that_others_can_read_is_refused",
        "config/test_secrets::test_memory_file_systems_are_exempt_from_modes",
    ),
    "On a computer that you share, define callers, or set `server.tcp = false` and `server.unix_socket` in a"
    " folder of your own.": (
        "server/test_listeners::test_without_tcp_it_listens_on_the_unix_socket_alone",
        "whole/test_threats::test_other_local_users_cannot_use_the_unix_socket",
    ),
    "In a pod or under systemd, give secrets as files.": (
        "cli/snippets/test_operators::test_the_kubernetes_snippet_fits_the_schema_and_its_configuration_is_ours",
        "config/test_trust::test_the_layout_of_kubernetes_passes",
        "config/test_secrets::test_a_secret_file_can_be_a_credential_of_systemd",
    ),
    "The log warns of secrets in environment variables.": (
        "whole/test_threats::test_a_secret_in_the_environment_is_warned_of_once_by_the_variables_name",
    ),
    "[.github/SECURITY.md](.github/SECURITY.md) has the threat model, and says how to report a problem.": (
        "test_documents::test_every_file_that_a_document_links_to_is_there",
    ),
}
ELSEWHERE = {
    "README.md": {
        "writes `config.toml`, which only you can read": (
            "cli/test_init::test_the_answers_make_a_configuration_that_loads",
        ),
        "Run again, it adds to that file": (
            "cli/test_init::test_it_writes_to_the_users_folder_and_adds_to_what_is_there",
        ),
        "with your URLs and without a secret": (
            "cli/snippets/test_text::test_every_place_is_filled_and_no_secret_is_in_it",
        ),
        "Never start two on one port: the second one ends with an error.": (
            "app/test_app::test_a_taken_port_is_a_listen_error_that_names_the_setting",
        ),
        "which send all requests of a project to one replica": (
            "cli/snippets/test_gateway::test_the_balancer_sends_a_project_to_one_replica",
            "cli/snippets/test_gateway::test_the_balancer_accepts_its_configuration",
        ),
        "Each request needs a key; Prometheus scrapes each pod": (
            "cli/snippets/test_gateway::test_a_replica_needs_keys_and_fetches_tokens_on_first_use",
            "cli/snippets/test_gateway::test_the_resources_fit_the_schemas",
        ),
        "show one replica, and name it": (
            "admin/test_admin::test_status_names_the_computer_and_the_public_url",
            "admin/test_page::test_it_names_the_public_url_and_the_computer",
            "admin/test_requests::test_the_oldest_is_first_and_since_goes_on",
        ),
        "a replica keeps no token fresh that no request has used for two lifetimes": (
            "projects/test_leases::test_in_a_day_a_replica_fetches_tokens_only_for_what_requests_use",
        ),
        "(its `server.public_url`, if that is set)": (
            "gateway/test_oauth::test_behind_a_server_that_ends_tls_the_endpoint_is_the_public_url",
        ),
        "The program never gets the real token or secret.": (
            "gateway/test_oauth::test_without_callers_anybody_gets_a_placeholder_and_this_proxy_as_endpoint",
        ),
        "An answer that was cut never looks complete.": (
            "whole/test_fuzz::test_mutated_answers_crash_nothing_never_look_whole_and_leave_the_next_answer_alone",
        ),
        "200: the process is alive and answers": (
            "admin/test_admin::test_healthy_says_that_the_process_lives_whatever_the_tokens_do",
            "server/test_capacity::test_a_full_listener_answers_probes_and_says_in_time_that_it_is_full",
        ),
        "For probes: `csq-proxy health [--ready]`; `csq-proxy wait [--timeout S]` waits until it is ready": (
            "cli/test_health::test_each_address_is_asked_and_a_401_counts_as_alive",
            "cli/test_health::test_a_unix_socket_is_asked",
            "cli/test_health::test_an_answer_of_500_or_more_is_unhealthy",
            "cli/test_health::test_it_loads_no_library_and_runs_no_command",
            "cli/test_wait::test_it_waits_for_a_proxy_without_tokens",
        ),
        "`csq-proxy stop` calls this address, and waits for the end": (
            "cli/test_stop::test_where_quit_is_allowed_it_is_asked_for",
            "cli/test_stop::test_an_unknown_process_that_accepts_no_more_is_waited_for",
        ),
        "`stop` sends SIGTERM, but only to a proxy of the same user on this computer (Linux)": (
            "cli/test_stop::test_a_signal_is_sent_only_where_quit_is_not_allowed",
            "cli/test_stop::test_a_process_that_holds_the_unix_socket_gets_sigterm",
            "cli/test_stop::test_a_process_that_does_not_hold_the_port_gets_no_signal",
        ),
        "`man csq-proxy` has all commands and options; the wheel brings it, and completions for bash, zsh and fish": (
            "cli/test_manual::test_each_command_and_option_is_in_it",
            "cli/test_manual::test_the_wheel_and_the_source_have_it_and_what_the_shells_load",
            "cli/test_completion::test_a_shell_itself_completes_with_what_the_wheel_installs",
        ),
        "After it, those that wait are answered with `PROXY_STOPPING`, and answers that have begun are cut": (
            "app/test_end_of_drain::test_a_caller_that_waits_for_contentsquare_is_told_that_the_proxy_stops",
            "app/test_end_of_drain::test_an_answer_that_has_begun_is_cut_and_the_log_says_by_whom",
        ),
        "requests in flight have `drain_timeout` to finish": (
            "app/test_app::test_a_running_request_finishes_while_the_proxy_stops",
            "app/test_app::test_a_request_that_does_not_finish_in_time_is_aborted",
        ),
        "SIGHUP, or a changed configuration, secret or key file": (
            "app/test_reload::test_a_changed_secret_file_is_used_without_a_gap",
            "app/test_reload::test_a_changed_configuration_file_is_noticed",
            "app/test_reload::test_a_renewed_certificate_is_shown_to_new_connections",
        ),
        "It warns at 80 and 100 % of a `quota` of calls a month (UTC)": (
            "projects/test_calls::test_a_quota_warns_once_at_80_and_once_at_100_percent_of_each_month",
            "projects/test_calls::test_a_month_ends_in_utc_and_the_next_begins_at_zero",
        ),
        "with `server.state_dir` their counts outlast a restart": (
            "app/test_counts_kept::test_the_calls_of_a_killed_proxy_and_of_a_stopped_one_are_counted_after_it",
            "projects/test_calls_file::test_a_process_that_is_killed_leaves_a_whole_file_and_no_lock",
        ),
        "the last 200 requests of each project, without query and content": (
            "projects/test_recent::test_the_last_ones_of_each_project_are_kept_whatever_the_others_do",
            "gateway/test_recent::test_an_answer_of_contentsquares_with_all_that_is_known",
            "gateway/test_recent::test_no_secret_is_shown_wherever_a_caller_puts_it",
        ),
    },
    ".github/SECURITY.md": {
        "a right key doesn't wait for them": (
            "gateway/test_callers::test_guessing_keys_is_slow_and_a_right_key_is_never_kept_waiting",
        ),
        "Keys are compared as digests, in constant time": (
            "whole/test_threats::test_a_callers_key_is_compared_in_constant_time_and_held_as_a_digest",
        ),
        "the oldest connection is closed for a new one": (
            "server/test_strangers::test_the_oldest_stranger_is_dropped_and_a_known_caller_never",
        ),
        "idle ones are closed for new ones": (
            "server/test_capacity::test_idle_connections_make_room_for_new_ones",
        ),
        "`/-/status`, `/-/metrics`, the page, `/-/ready` and the names that a 404 suggests show only the caller's"
        " own projects": (
            "gateway/test_callers::test_a_caller_is_told_of_its_own_projects_alone",
            "gateway/test_callers::test_a_project_of_others_is_answered_like_one_that_does_not_exist",
        ),
        "`/-/requests` only its own requests there": (
            "admin/test_requests::test_callers_with_limits_see_their_own_requests_only",
            "admin/test_requests::test_a_caller_with_limits_learns_nothing_of_others",
        ),
        "also in other case, escaped up to three times, or where only a lenient server reads it so": (
            "gateway/test_policy::test_no_spelling_of_projectid_in_the_query_crosses_to_another_project",
            "gateway/test_lenient_oracle::test_no_reader_sees_another_project_in_a_target_that_is_forwarded",
        ),
        "the process leaves no core dump, and on Linux another process of the same user can't attach to it": (
            "whole/test_threats::test_secrets_are_in_neither_argv_nor_environ_and_a_crash_leaves_no_core",
            "test_process::test_there_are_no_core_dumps_no_attaching_and_enough_descriptors",
        ),
    },
    "config.example.toml": {
        "A client_id, a secret or a key is one line, without invisible characters, and without blanks or quotes"
        " around it.": (
            "config/test_pasted::test_a_pasted_value_gets_the_same_verdict_in_a_file_of_settings",
        ),
        "Sticky folders such as /tmp, a group of yours alone, and read-only mounts pass.": (
            "config/test_trust::test_a_folder_above_that_others_can_write_to_is_refused_unless_it_is_sticky",
            "config/test_trust::test_the_files_of_umask_002_pass_where_the_group_is_the_user_s_own",
            "config/test_trust::test_whatever_is_on_a_read_only_mount_passes",
        ),
        "so that other users of this computer can't call the proxy": (
            "whole/test_threats::test_other_local_users_cannot_use_the_unix_socket",
        ),
        "over plain http, any web page that knows the name can send requests to it": (
            "config/test_checks::test_another_name_over_plain_http_needs_callers_or_tls",
        ),
        "The program may take 10 seconds, and can't ask on the terminal.": (
            "config/test_secrets::test_a_command_s_children_end_with_it_at_the_limit",
            "config/test_secrets::test_a_command_has_no_terminal_to_ask_on",
        ),
    },
    "CHANGELOG.md": {
        "is escaped wherever a command prints it, and can't move the cursor or begin a line": (
            "test_foreign::test_a_terminal_obeys_no_character_of_a_foreign_text",
            "cli/test_main::test_the_commands_print_at_one_place_only",
            "cli/test_completion::test_offered_are_commands_projects_and_tools",
            "cli/test_live_check::test_what_contentsquare_says_moves_no_cursor_and_shows_no_secret",
        ),
        "A secret in Contentsquare's errors is withheld, also in base64, hexadecimal, reversed or escaped.": (
            "test_foreign::test_a_secret_is_found_in_any_spelling",
        ),
    },
}
"""By document: a promise, in the words of the document."""


def words_of(name: str) -> str:
    """The text of a document as one line, without the marks of a comment."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return " ".join(re.sub(r"^#(?= )", "", text, flags=re.MULTILINE).split())


def test_each_sentence_of_the_security_chapter_has_its_tests() -> None:
    chapter = words_of("README.md").partition(" ## Security ")[2].partition(" ## ")[0]
    items = re.split(r"(?:^| )\d+\. ", chapter)[1:]
    sentences = [part for item in items for part in re.split(r"(?<=[.*]) (?=[A-Z`\[])", item)]
    assert sentences == [*SECURITY_CHAPTER]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_documents_say_what_the_tests_hold(name: str) -> None:
    text = words_of(name)
    assert not [promise for promise in ELSEWHERE[name] if promise not in text]


def test_the_tests_that_hold_the_promises_exist() -> None:
    tables = (SECURITY_CHAPTER, *ELSEWHERE.values())
    named = {test for table in tables for tests in table.values() for test in tests}
    missing = []
    for file, name in sorted(tuple(test.split("::")) for test in named):
        text = (TESTS / f"{file}.py").read_text(encoding="utf-8")
        if not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE):
            missing.append(f"{file}::{name}")
    assert not missing
