"""A Tiltfile evaluated without Tilt: a Starlark interpreter whose built-ins record what they are told.

They know the parameters that Tilt's own have, and refuse others: an argument that Tilt would not understand fails here.
"""

import functools
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import starlark

ROOT = Path(__file__).resolve().parents[2]

# Tilt's own built-ins, each with the names of its parameters in their order.
BUILT_INS = {
    "local_resource": "name cmd deps trigger_mode resource_deps ignore auto_init serve_cmd cmd_bat serve_cmd_bat "
    "allow_parallel links tags env serve_env readiness_probe dir serve_dir labels",
    "dc_resource": "name trigger_mode resource_deps links labels auto_init project_name new_name infer_links",
    "docker_build": "ref context build_args dockerfile dockerfile_contents live_update match_in_env_vars ignore only "
    "entrypoint target ssh secret network extra_tag container_args cache_from pull platform extra_hosts",
    "docker_compose": "configPaths env_file project_name profiles wait",
    "probe": "initial_delay_secs timeout_secs period_secs success_threshold failure_threshold exec http_get tcp_socket",
    "http_get_action": "port host scheme path",
    "tcp_socket_action": "port host",
    "exec_action": "command",
    "link": "url name",
    "sync": "local_path remote_path",
    "fall_back_on": "files",
    "restart_container": "",
    "local": "command quiet command_bat echo_off env dir stdin",
    "ui_button": "name annotations labels location text icon_name icon_svg disabled requires_confirmation inputs",
    "cmd": "name annotations labels args dir env readiness_probe restart_on start_on disable_source",
    "define_string": "name args usage",
    "define_string_list": "name args usage",
    "set_enabled_resources": "resources",
}
# Names that only lead to others.
PRELUDE = """
os = struct(getenv = _getenv, path = struct(join = _join, exists = _exists))
config = struct(
    main_dir = _main_dir,
    parse = _parse,
    define_string = _define_string,
    define_string_list = _define_string_list,
    set_enabled_resources = _set_enabled_resources,
)
v1alpha1 = struct(ui_button = _ui_button, cmd = _cmd)
TRIGGER_MODE_MANUAL = 'manual'
"""
HIDDEN = ("ui_button", "cmd", "define_string", "define_string_list", "set_enabled_resources")


@functools.cache
def output(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@dataclass
class Tilt:
    """One evaluation: with which settings, and what was recorded."""

    settings: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)
    """Built-in -> what it was called with, one mapping per call."""
    files: list = field(default_factory=list)

    def evaluate(self, path=ROOT / "Tiltfile"):
        self._module(path)
        return self

    def of(self, built_in):
        return self.calls.get(built_in, [])

    def named(self, built_in):
        found = {call["name"]: call for call in self.of(built_in)}
        assert len(found) == len(self.of(built_in)), f"two {built_in} of one name"
        return found

    def _module(self, path):
        self.files.append(path)
        dialect = starlark.Dialect.extended()
        dialect.enable_top_level_stmt = True
        dialect.enable_load = True
        standard = starlark.Globals.extended_by([starlark.LibraryExtension.StructType])
        module = starlark.Module()
        module["_main_dir"] = str(ROOT)
        for name, parameters in BUILT_INS.items():
            module.add_callable(f"_{name}" if name in HIDDEN else name, self._recorder(name, parameters.split()))
        module.add_callable("fail", self._fail)
        module.add_callable("decode_json", json.loads)
        module.add_callable("_getenv", lambda name, default=None: os.environ.get(name, default))
        module.add_callable("_join", lambda *parts: os.path.join(*parts))
        module.add_callable("_exists", lambda name: name == str(ROOT / ".venv") or self.settings.get("_exists", False))
        module.add_callable("_parse", lambda: {k: v for k, v in self.settings.items() if not k.startswith("_")})
        starlark.eval(module, starlark.parse("prelude", PRELUDE, dialect), standard)
        loader = starlark.FileLoader(lambda name: self._module((path.parent / name).resolve()).freeze())
        starlark.eval(module, starlark.parse(str(path), path.read_text(), dialect), standard, loader)
        return module

    def _recorder(self, name, parameters):
        def record(*given, **named):
            unknown = set(named) - set(parameters)
            assert not unknown, f"{name} has no parameter {unknown}"
            told = dict(zip(parameters, given, strict=False)) | named
            self.calls.setdefault(name, []).append(told)
            if name == "local" and {"tilt.parts", "settings"} & set(told["command"]):
                # Commands whose output the Tiltfile needs to go on.
                return output(tuple(told["command"]), told["dir"])
            return {"built_in": name, **told}

        return record

    def _fail(self, message):
        raise ValueError(message)
