package distroml.local;

import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.bootstrap.BootstrapInfo;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Runs one node in this process until SIGTERM: {@code Start CONFIG_FOLDER name=value...}.
 *
 * <p>The server's own main class wants an agent jar that is published nowhere, and refuses to run as root.
 */
public final class Start {
    private static final long CLOSE_SECONDS = 10;

    private Start() {}

    /** Ends with status 1, and the reason on standard error, where the node does not start. */
    public static void main(String[] words) throws Exception {
        Map<String, String> settings = settings(words);
        Environment environment = environment(Path.of(words[0]), settings);
        Path modules = Path.of(settings.get("path.home"), "modules");
        // The server lies on the class path, for its modules want more of Java than it uses: it exports nothing.
        PluginsLoader parts =
            PluginsLoader.createPluginsLoader(
                PluginsLoader.loadModulesBundles(modules, false), Set.of(), Map.of(), false);
        Node node = new Node(environment, parts);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node), "close"));
        try {
            node.start();
        } catch (Throwable trouble) {
            trouble.printStackTrace();
            System.exit(1);
        }
        // The node's threads are daemons: this one keeps the process alive until a signal ends it.
        Thread.currentThread().join();
    }

    private static Map<String, String> settings(String[] words) {
        Map<String, String> settings = new HashMap<>();
        for (int i = 1; i < words.length; i++) {
            String[] pair = words[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        return settings;
    }

    private static Environment environment(Path config, Map<String, String> settings) throws Exception {
        // Classes that read settings log while they are loaded, so the logging comes first.
        LogConfigurator.configureESLogging();
        BootstrapInfo.init();
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(Settings.EMPTY, settings, config, () -> "local");
        LogConfigurator.setNodeName(Node.NODE_NAME_SETTING.get(environment.settings()));
        LogConfigurator.configure(environment, true);
        return environment;
    }

    private static void close(Node node) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(CLOSE_SECONDS, TimeUnit.SECONDS);
        } catch (Exception trouble) {
            trouble.printStackTrace();
        }
    }
}
