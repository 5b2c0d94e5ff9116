import java.net.Inet4Address;
import java.net.InetAddress;
import java.net.UnknownHostException;

/** Looks names up as Java programs do. */
class Resolve {
    public static void main(String[] names) {
        for (String name : names) {
            try {
                for (InetAddress found : InetAddress.getAllByName(name)) {
                    if (found instanceof Inet4Address) {
                        System.out.println(name + " " + found.getHostAddress());
                    }
                }
            } catch (UnknownHostException unknown) {
                System.out.println(name + " unknown");
            }
        }
    }
}
